"""The loaders of examples/cifar100 against torchvision's transforms, and their resumption."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

for package in ("PIL", "sklearn", "torchvision"):
    pytest.importorskip(package)

from torchvision import transforms

from images.augment import Augmentation
from images.data import CROP_AND_FLIP, ImageSet
from images.loaders import DeviceLoader, EvaluationLoader, WorkerLoader, train_loader

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# On a CPU both sides do the same float32 operations. A GPU may divide by 255 and by the deviation
# with reciprocals: a few roundings more, of 2⁻²⁴ of numbers below 1 over the smallest deviation.
TOLERANCE = {"cpu": 0.0, "cuda": 4 * 2**-24 / min(STD)}
LOADERS = [("device", 0), ("workers", 0), ("workers", 2)]
each_loader = pytest.mark.parametrize(
    ("kind", "workers"), LOADERS, ids=["device", "in this process", "2 workers"]
)


def image_set(count, mean=MEAN, std=STD, augmentation=CROP_AND_FLIP):
    """Red is the pixel's row plus one, green its column plus one, blue is noise."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    images[:, 0] = torch.arange(1, 33)[:, None]
    images[:, 1] = torch.arange(1, 33)
    labels = torch.randint(100, (count,))
    return ImageSet(images, labels, tuple(map(str, range(100))), mean, std, augmentation)


def choices(batch, mean=MEAN, std=STD):
    """Where each image was cut and whether it was mirrored, read off its middle, never padding."""
    middle = batch.images[:, :2, 16, 16:18].cpu()
    scale = torch.tensor(std)[:2, None], torch.tensor(mean)[:2, None]
    row, column = ((middle * scale[0] + scale[1]) * 255).round().long().unbind(1)
    flip = column[:, 1] < column[:, 0]
    # Source row = top + 16 − 4; source column = left + 16 − 4, mirrored left + (31 − 16) − 4.
    return row[:, 0] - 1 - 12, column[:, 0] - 1 - torch.where(flip, 11, 12), flip


def published(images, number, top, left, flip, monkeypatch):
    """The published transforms, with their random choices forced."""
    pipeline = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(float(flip)),
            transforms.ToTensor(),
            transforms.Normalize(images.mean, images.std),
        ]
    )
    corner = (int(top), int(left), 32, 32)
    monkeypatch.setattr(transforms.RandomCrop, "get_params", lambda *args, **kwargs: corner)
    return pipeline(transforms.functional.to_pil_image(images.images[number]))


def uniform(cells, count):
    """Pearson's χ² of equally likely cells lies within five standard deviations of its mean."""
    seen = torch.bincount(cells, minlength=count).double()
    expected = len(cells) / count
    freedom = count - 1
    return ((seen - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def cell(top, left, flip):
    """The number, 0 … 161, of a crop's corner and a flip."""
    return (top * 9 + left) * 2 + flip


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for batch, other in zip(batches, others, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


@each_loader
def test_every_image_is_the_published_pipelines(kind, workers, device, monkeypatch):
    images = image_set(50)
    loader = train_loader(kind, images, 20, device=device, workers=workers)
    batches = list(loader.epoch(0))
    assert [len(batch.idx) for batch in batches] == [20, 20, 10]
    assert len(loader) == 3
    for batch in batches:
        assert all(part.device.type == device.type for part in batch)
        assert batch.labels.dtype == batch.idx.dtype == torch.int64
        assert torch.equal(batch.labels.cpu(), images.labels[batch.idx.cpu()])
        for image, number, *choice in zip(batch.images, batch.idx, *choices(batch), strict=True):
            expected = published(images, number, *choice, monkeypatch)
            error = (image.cpu() - expected).abs().max()
            assert error <= TOLERANCE[device.type]


def test_crops_are_uniform_and_half_the_images_mirrored(device):
    loader = DeviceLoader(image_set(100 * 162), 4050, device=device)
    cells = torch.cat([cell(*choices(batch)) for batch in loader.epoch(0)])
    assert uniform(cells, 162)
    # Each image is mirrored or not: a standard deviation of √N / 2.
    assert abs((cells % 2).sum() - len(cells) / 2) < 5 * len(cells) ** 0.5 / 2


def test_a_samples_choices_and_place_are_uniform_over_the_epochs():
    loader = DeviceLoader(image_set(4), 4)
    cells, places = [], []
    for epoch in range(5 * 81):
        (batch,) = loader.epoch(epoch)
        place = batch.idx.argmin()
        cells.append(cell(*choices(batch))[place] // 2)
        places.append(place)
    assert uniform(torch.stack(cells), 81)
    assert uniform(torch.stack(places), 4)


@each_loader
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_entered_in_its_middle_goes_on_as_unbroken(kind, workers, drop_last, device):
    options = {"seed": 3, "device": device, "drop_last": drop_last, "workers": workers}
    loader = train_loader(kind, image_set(45), 10, **options)
    unbroken = list(loader.epoch(7))
    assert len(unbroken) == len(loader) == (4 if drop_last else 5)
    assert {len(batch.idx) for batch in unbroken[:4]} == {10}
    for start in range(len(loader) + 1):
        assert same(list(loader.epoch(7, start)), unbroken[start:])
    # As a new process would, after other epochs.
    again = train_loader(kind, loader.images, 10, **options)
    next(again.epoch(6))
    assert same(list(again.epoch(7, 2)), unbroken[2:])


def test_every_loader_gives_the_same_batches(device):
    images = image_set(45)
    runs = [
        list(train_loader(kind, images, 10, seed=1, device=device, workers=workers).epoch(2))
        for kind, workers in LOADERS
    ]
    assert same(runs[1], runs[2])
    for batch, other in zip(runs[0], runs[1], strict=True):
        assert torch.equal(batch.idx, other.idx)
        error = (batch.images - other.images).abs().max()
        assert error <= TOLERANCE[device.type]


@each_loader
def test_every_sample_comes_once_and_epochs_and_seeds_differ(kind, workers):
    images = image_set(60)

    def run(seed, epoch):
        loader = train_loader(kind, images, 16, seed=seed, workers=workers)
        batches = list(loader.epoch(epoch))
        order = torch.cat([batch.idx for batch in batches])
        assert order.sort().values.tolist() == list(range(60))
        cells = torch.cat([cell(*choices(batch)) for batch in batches])
        return order, cells[order.argsort()]

    # Every two of them differ, (0, 1) and (1, 0) too; a seed counts beyond its 32 low bits.
    runs = [run(*numbers) for numbers in ((0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0))]
    for (order, cells), (other_order, other_cells) in combinations(runs, 2):
        assert not torch.equal(order, other_order)
        assert not torch.equal(cells, other_cells)


@each_loader
def test_the_global_random_state_is_left_alone(kind, workers):
    images = image_set(20)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(train_loader(kind, images, 8, workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@each_loader
def test_augmentations_can_be_left_out(kind, workers):
    images = image_set(50, augmentation=Augmentation(flip=False))
    for batch in train_loader(kind, images, 50, workers=workers).epoch(0):
        top, left, flip = choices(batch)
        assert not flip.any()
        assert len(top.unique()) > 1
        assert len(left.unique()) > 1

    images = replace(images, augmentation=Augmentation(padding=0, flip=False))
    (plain,) = EvaluationLoader(images, 50)
    (batch,) = train_loader(kind, images, 50, workers=workers).epoch(0)
    assert torch.equal(batch.images, plain.images[batch.idx])


def test_evaluation_is_in_order_and_as_published(device):
    images = image_set(25)
    loader = EvaluationLoader(images, 10, device=device)
    batches = list(loader)
    assert [len(batch.idx) for batch in batches] == [10, 10, 5]
    assert len(loader) == 3
    assert torch.equal(torch.cat([batch.idx for batch in batches]).cpu(), torch.arange(25))
    assert torch.equal(torch.cat([batch.labels for batch in batches]).cpu(), images.labels)
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = [pipeline(transforms.functional.to_pil_image(image)) for image in images.images]
    error = torch.cat([batch.images for batch in batches]).cpu() - torch.stack(expected)
    assert error.abs().max() <= TOLERANCE[device.type]
    assert same(list(loader), batches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_host_sync_within_a_cuda_epoch():
    loader = DeviceLoader(image_set(50), 20, device="cuda")
    batches = loader.epoch(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(batches)) == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bad_settings():
    images = image_set(4)
    with pytest.raises(ValueError, match="batch_size=0"):
        DeviceLoader(images, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        EvaluationLoader(images, 0)
    with pytest.raises(ValueError, match="seed=-1"):
        WorkerLoader(images, 2, seed=-1)
    with pytest.raises(ValueError, match="no batch of 5"):
        DeviceLoader(images, 5, drop_last=True)
    with pytest.raises(ValueError, match="device, workers"):
        train_loader("gpu", images, 2)
    for epoch, start_batch in ((-1, 0), (0, -1), (0, 3)):
        with pytest.raises(ValueError, match="start_batch"):
            DeviceLoader(images, 2).epoch(epoch, start_batch)
