"""The image sets of examples/cifar100, from small files in the official formats."""

import gzip
import hashlib
import pickle
import shutil
import tarfile
import urllib.error
import urllib.request
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("PIL", "sklearn", "torchvision"):
    pytest.importorskip(package)

from PIL import Image
from torchvision import datasets, transforms

import engine
import options
from images import data, fashion_mnist, tiny_imagenet

RANDOM = np.random.default_rng(0)
WNIDS = ["n01443537", "n01629819"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "installed")


def pixels(*shape):
    return RANDOM.integers(256, size=shape, dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def accept(monkeypatch, kind, folder):
    """Torchvision's md5 sums become those of the files written here."""
    for part in ("train_list", "test_list"):
        names = [name for name, _ in getattr(kind, part)]
        monkeypatch.setattr(kind, part, [[name, md5(folder / name)] for name in names])
    if hasattr(kind, "meta"):
        meta = folder / kind.meta["filename"]
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})


def write_cifar(kind, folder, label_key, each):
    """``each`` images in every file; returns images and labels by file name."""
    folder.mkdir(parents=True)
    written = {}
    names = [f"class {number}" for number in range(10)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    for name, _ in kind.train_list + kind.test_list:
        images, labels = pixels(each, 3 * 32 * 32), RANDOM.integers(10, size=each).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": images, label_key: labels}, protocol=2))
        written[name] = images.reshape(each, 3, 32, 32), labels
    return written


@pytest.mark.parametrize(
    ("name", "kind", "label_key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_cifar(tmp_path, monkeypatch, name, kind, label_key):
    folder = tmp_path / kind.base_folder
    written = write_cifar(kind, folder, label_key, each=3)
    accept(monkeypatch, kind, folder)
    for train, files in ((True, kind.train_list), (False, kind.test_list)):
        loaded = data.load(name, tmp_path, train)
        images, labels = zip(*(written[file] for file, _ in files), strict=True)
        assert torch.equal(loaded.images, torch.from_numpy(np.concatenate(images)))
        assert loaded.labels.tolist() == [*chain(*labels)]
        assert loaded.labels.dtype == torch.int64
        assert len(loaded) == 3 * len(files)
        assert loaded.classes[9] == "class 9"
        assert loaded.mean == (0.5071, 0.4867, 0.4408)
        assert loaded.std == (0.2675, 0.2565, 0.2761)


def test_an_archive_in_the_root_is_unpacked_and_a_part_of_one_is_not_taken(tmp_path, monkeypatch):
    kind = datasets.CIFAR100
    folder = tmp_path / "elsewhere" / kind.base_folder
    write_cifar(kind, folder, "fine_labels", each=2)
    accept(monkeypatch, kind, folder)
    root = tmp_path / "root"
    root.mkdir()
    archive = root / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))

    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="cifar-100-python"):
            data.load("cifar100", root)
    archive.write_bytes(whole)
    assert len(data.load("cifar100", root)) == 2

    archive.unlink()
    batch = root / kind.base_folder / "train"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="damaged"):
        data.load("cifar100", root, train=False)


def write_stl10(folder):
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(f"class {number}" for number in range(10)))
    for part, count in (("train", 4), ("test", 3)):
        pixels(count, 3, 96, 96).tofile(folder / f"{part}_X.bin")
        (np.arange(count, dtype=np.uint8) + 7).tofile(folder / f"{part}_y.bin")
    (folder / "unlabeled_X.bin").touch()


@pytest.mark.parametrize(("train", "count"), [(True, 4), (False, 3)], ids=["train", "test"])
def test_stl10(tmp_path, monkeypatch, train, count):
    folder = tmp_path / datasets.STL10.base_folder
    write_stl10(folder)
    accept(monkeypatch, datasets.STL10, folder)
    loaded = data.load("stl10", tmp_path, train)
    published = datasets.STL10(tmp_path, "train" if train else "test", transform=RESIZED)
    assert_same(loaded, published)
    assert loaded.labels.tolist() == [6, 7, 8, 9][:count]  # numbered from 1 in the files
    assert loaded.classes[6] == "class 6"


RESIZED = transforms.Compose([transforms.Resize((32, 32)), transforms.PILToTensor()])


def assert_same(loaded, published):
    assert len(loaded) == len(published)
    for number, (image, label) in enumerate(published):
        assert torch.equal(loaded.images[number], image)
        assert loaded.labels[number] == label


def write_tiny_imagenet(folder, monkeypatch, sort_validation):
    """The archive's layout; ``sort_validation`` moves val/images into a folder for each class."""
    for wnid in WNIDS:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for number in range(3):
            # A few of the official images are grey.
            image = Image.fromarray(pixels(64, 64) if number == 0 else pixels(64, 64, 3))
            image.save(folder / "train" / wnid / "images" / f"{wnid}_{number}.png")
    (folder / "val" / "images").mkdir(parents=True)
    labels = [WNIDS[1], WNIDS[0], WNIDS[1], WNIDS[0]]
    lines = []
    for number, wnid in enumerate(labels):
        path = folder / "val" / "images" / f"val_{number}.png"
        Image.fromarray(np.full((64, 64, 3), 10 * number, np.uint8)).save(path)
        lines.append(f"{path.name}\t{wnid}\t0\t32\t44\t62\n")
        if sort_validation:
            (folder / "val" / wnid).mkdir(exist_ok=True)
            path.rename(folder / "val" / wnid / path.name)
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    if sort_validation:
        (folder / "val" / "images").rmdir()
    monkeypatch.setattr(tiny_imagenet, "COUNTS", {"train": 6, "val": 4})


@pytest.mark.parametrize("sort_validation", [True, False], ids=["ImageFolder", "as unpacked"])
def test_tiny_imagenet(tmp_path, monkeypatch, sort_validation):
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(folder, monkeypatch, sort_validation)
    train = data.load("tiny-imagenet", tmp_path)
    assert_same(train, datasets.ImageFolder(folder / "train", RESIZED))
    assert train.classes == tuple(WNIDS)
    held_out = data.load("tiny-imagenet", tmp_path, train=False)
    # In the order of an ImageFolder: by class, then by name.
    assert held_out.labels.tolist() == [0, 0, 1, 1]
    assert held_out.images[:, 0, 0, 0].tolist() == [10, 30, 0, 20]
    assert held_out.classes == train.classes


def test_a_tiny_imagenet_that_is_not_whole_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(folder, monkeypatch, sort_validation=True)
    image = folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_1.png"
    image.write_bytes(image.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{image.name} is damaged"):
        data.load("tiny-imagenet", tmp_path)
    image.unlink()
    with pytest.raises(ValueError, match="5 images .* not 6.*" + tiny_imagenet.URL):
        data.load("tiny-imagenet", tmp_path)
    (folder / "val" / WNIDS[0]).rename(folder / "val" / "n99999999")
    with pytest.raises(ValueError, match="2 images of the 2 classes"):
        data.load("tiny-imagenet", tmp_path, train=False)


def test_tiny_imagenet_is_unpacked_whole_or_not_at_all(tmp_path, monkeypatch):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    write_tiny_imagenet(elsewhere / "tiny-imagenet-200", monkeypatch, sort_validation=False)
    root.mkdir()
    archive = root / "tiny-imagenet-200.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", elsewhere)
    monkeypatch.setattr(tiny_imagenet, "MD5", md5(archive))

    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileNotFoundError, match="no network in tests"):
        data.load("tiny-imagenet", root)
    archive.write_bytes(whole)
    with monkeypatch.context() as patch:  # killed after it was unpacked, before it was renamed
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            data.load("tiny-imagenet", root)
    assert not (root / "tiny-imagenet-200").exists()
    assert len(data.load("tinyimagenet", root)) == 6
    assert sorted(path.name for path in root.iterdir()) == ["tiny-imagenet-200", archive.name]


def killed(*args):
    raise KeyboardInterrupt


def idx_file(array):
    """uint8 in the format of MNIST's files: a magic number, the sizes, the bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return (0x800 + array.ndim).to_bytes(4, "big") + sizes + array.tobytes()


def write_fashion_mnist(folder, packed):
    """Torchvision's files, or with ``packed`` the Debian package's; images and labels by part."""
    folder.mkdir(parents=True)
    written = {}
    for part, count in (("train", 5), ("t10k", 3)):
        images, labels = pixels(count, 28, 28), RANDOM.integers(10, size=count, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_file(array)
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
        written[part] = images, labels
    return written


@pytest.mark.parametrize("packed", [False, True], ids=["torchvision's files", "Debian's package"])
def test_fashion_mnist(tmp_path, packed):
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    written = write_fashion_mnist(fashion_mnist.INSTALLED if packed else raw, packed)
    for part, train in (("train", True), ("t10k", False)):
        loaded = data.load("fashion-mnist", tmp_path / "root", train)
        images, labels = written[part]
        expected = np.pad(images, ((0, 0), (2, 2), (2, 2)))
        for channel in range(3):
            assert torch.equal(loaded.images[:, channel], torch.from_numpy(expected))
        assert loaded.labels.tolist() == labels.tolist()
        assert loaded.labels.dtype == torch.int64
        assert loaded.classes[9] == "Ankle boot"
        assert loaded.augmentation.flip
    assert len([*raw.iterdir()]) == 4
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["FashionMNIST"]


def test_a_fashion_mnist_that_is_not_whole_is_refused(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    write_fashion_mnist(raw, packed=False)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"damaged; remove the folder .*raw"):
        data.load("fashion-mnist", tmp_path)
    assert len(data.load("fashion-mnist", tmp_path, train=False)) == 3


def test_fashion_mnist_is_normalised_with_its_own_pixels():
    files = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    if not files.exists():
        pytest.skip("needs Debian's dataset-fashion-mnist")
    # The constants are rounded to four digits.
    values = np.frombuffer(gzip.decompress(files.read_bytes()), np.uint8, offset=16) / 255
    assert values.mean() == pytest.approx(0.2860, abs=5e-5)
    assert values.std() == pytest.approx(0.3530, abs=5e-5)


def test_images_held_out_and_a_part_of_the_classes():
    digits = data.load("digits")
    digits = data.replace(digits, images=digits.images[:101], labels=digits.labels[:101])
    kept, held_out = digits.split(20)
    assert (len(kept), len(held_out)) == (81, 20)
    # Evenly spaced, none in both, and all in their order.
    numbers = [number * 101 // 20 for number in range(20)]
    others = [number for number in range(101) if number not in numbers]
    for part, expected in ((held_out, numbers), (kept, others)):
        assert torch.equal(part.images, digits.images[expected])
        assert torch.equal(part.labels, digits.labels[expected])
    with pytest.raises(ValueError, match="101 images cannot be held out of 101"):
        digits.split(101)

    part = digits.of_classes((7, 2))
    assert part.classes == ("7", "2")
    expected = [number for number in range(101) if digits.labels[number] in (2, 7)]
    assert torch.equal(part.images, digits.images[expected])
    assert part.labels.tolist() == [int(digits.labels[n] == 2) for n in expected]
    assert digits.of_classes(None) is digits
    with pytest.raises(ValueError, match="0 to 9; got"):
        digits.of_classes((3, 10))


def test_classes_as_an_option(capsys):
    parser = options.parser_of("")
    options.add_data(parser, ["digits"])
    assert parser.parse_args(["--classes", "0-4,7"]).classes == (0, 1, 2, 3, 4, 7)
    for text in ("3", "1-", "4-2", "0-2,1", "a,b"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--classes", text])
        assert "at least two different classes" in capsys.readouterr().err


def test_what_is_held_out_takes_the_test_images_place():
    parser = options.parser_of("")
    options.add_data(parser, ["digits"])
    arguments = ["--held_out", "300", "--classes", "1,8", "--images", "40", "--batch_size", "8"]
    chosen = parser.parse_args(arguments)
    chosen.seed = 0
    kept, held_out = data.load("digits").of_classes((1, 8)).split(200)
    with pytest.raises(ValueError, match="300 images cannot be held out of 2"):
        engine.make_data(chosen, torch.device("cpu"))
    chosen.held_out = 200
    train, (_, tested) = engine.make_data(chosen, torch.device("cpu"))
    assert torch.equal(train.images, kept.thinned(40).images)
    assert torch.equal(tested.images.images, held_out.thinned(40).images)
    assert torch.equal(tested.images.labels, held_out.thinned(40).labels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fashion-mnist", ["FashionMNIST/raw", "package dataset-fashion-mnist", "http"]),
        ("cifar100", ["cifar-100-python", "train, test and meta", datasets.CIFAR100.url]),
        ("cifar10", ["cifar-10-batches-py", "data_batch_1", datasets.CIFAR10.url]),
        ("stl10", ["stl10_binary", "train_X.bin", datasets.STL10.url]),
        ("tiny-imagenet", ["tiny-imagenet-200", "val/<class>/", tiny_imagenet.URL]),
    ],
)
def test_a_missing_set_is_named_with_its_layout_and_address(tmp_path, name, expected):
    with pytest.raises(FileNotFoundError) as raised:
        data.load(name, tmp_path / "root")
    for text in [str(tmp_path / "root"), *expected]:
        assert text in str(raised.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_unknown_set():
    with pytest.raises(ValueError, match="digits, cifar100"):
        data.load("mnist")


def test_digits():
    train, held_out = data.load("digits"), data.load("digits", train=False)
    assert (len(train), len(held_out)) == (1198, 599)
    for part in (train, held_out):
        assert part.images.shape[1:] == (3, 32, 32)
        assert part.images.dtype == torch.uint8
        assert part.labels.unique().tolist() == list(range(10))
        assert (part.images.amin(), part.images.amax()) == (0, 255)
    values = train.images.double() / 255
    # The constants are rounded to four digits.
    assert values.mean().item() == pytest.approx(train.mean[0], abs=5e-5)
    assert values.std().item() == pytest.approx(train.std[0], abs=5e-5)
    assert not train.augmentation.flip
    rows = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in rows for image in held_out.images)
    assert torch.equal(train.images, data.load("digits").images)
