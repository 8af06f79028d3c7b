"""Image sets of 32×32 pixels, each whole in memory: CIFAR-100, Fashion-MNIST and others."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets

from images import fashion_mnist, tiny_imagenet
from images.augment import Augmentation

SIDE = 32

Channels = tuple[float, float, float]

CROP_AND_FLIP = Augmentation()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with labels, on the CPU.

    Attributes:
        images: uint8 [N, 3, 32, 32], red, green, blue.
        labels: int64 [N], numbers of ``classes``.
        classes: the names.
        mean, std: what the loaders normalise with, of values in [0, 1]. Those that the published
            scripts use for this set, or for digits its own; ``dataclasses.replace`` changes them.
        augmentation: what the training loaders may do to these images.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: Channels
    std: Channels
    augmentation: Augmentation = CROP_AND_FLIP

    def thinned(self, count: int | None) -> "ImageSet":
        """The set with no more than ``count`` images, evenly spaced, since some sets lie in the
        order of their classes; all of them for None."""
        if count is None or count >= len(self):
            return self
        return self._chosen(self._spaced(count))

    def split(self, count: int) -> tuple["ImageSet", "ImageSet"]:
        """The set without ``count`` images, evenly spaced, and those.

        Raises:
            ValueError: they would be all of it.
        """
        if count >= len(self):
            raise ValueError(
                f"{count} images cannot be held out of {len(self)}; give --held_out fewer"
            )
        held_out = torch.zeros(len(self), dtype=torch.bool, device="cpu")
        held_out[self._spaced(count)] = True
        return self._chosen(~held_out), self._chosen(held_out)

    def of_classes(self, numbers: Sequence[int] | None) -> "ImageSet":
        """The images of some classes, by their numbers; they are numbered from 0 in that order. All
        of them for None.

        Raises:
            ValueError: the set has no class of such a number.
        """
        if numbers is None:
            return self
        if not set(numbers) <= {*range(len(self.classes))}:
            raise ValueError(f"--classes must be in 0 to {len(self.classes) - 1}; got {numbers}")
        wanted = torch.tensor(numbers, device="cpu")
        found = self.labels[:, None] == wanted
        part = self._chosen(found.any(1))
        classes = tuple(self.classes[number] for number in numbers)
        return replace(part, labels=found.int().argmax(1)[found.any(1)], classes=classes)

    def _spaced(self, count: int) -> Tensor:
        return torch.arange(count, device="cpu") * len(self) // count

    def _chosen(self, chosen: Tensor) -> "ImageSet":
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)


def load(name: str, root: str | Path = "data", train: bool = True) -> ImageSet:
    """The training or the test images of one of ``DATA_SETS``.

    Args:
        name: ``"cifar100"``, ``"cifar10"``, ``"stl10"`` (the labelled images), ``"tiny-imagenet"``
            or ``"tinyimagenet"`` (``val/`` is its test set), ``"fashion-mnist"`` (grey, in three
            equal channels) or ``"digits"`` (scikit-learn's own, which needs no file). Larger images
            are resized to 32×32, smaller ones get a black border.
        root: the folder that holds, or is to hold, the sets' folders. What is not there is
            downloaded to it, and compared with its md5 sum, so that what is left of a download that
            broke off is never taken for the set.
        train: training (default) or test images.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: the files are not there and could not be downloaded; says which folders
            were expected and the official address.
        ValueError: also, Tiny-ImageNet or Fashion-MNIST is there, but not whole.

    Example:
        >>> len(load("digits", train=False))
        599
    """
    if name not in DATA_SETS:
        raise ValueError(f"no data set is called {name!r}; known data sets: {', '.join(DATA_SETS)}")
    return DATA_SETS[name](Path(root).expanduser(), train)


def _cifar100(root: Path, train: bool) -> ImageSet:
    kind = datasets.CIFAR100
    data = _from_torchvision(kind, root, "train, test and meta", train=train)
    return _cifar(data)


def _cifar10(root: Path, train: bool) -> ImageSet:
    kind = datasets.CIFAR10
    data = _from_torchvision(
        kind, root, "data_batch_1 to _5, test_batch, batches.meta", train=train
    )
    return _cifar(data)


def _cifar(data: Any) -> ImageSet:
    # CIFAR-10 too is published with CIFAR-100's mean and deviation.
    return ImageSet(
        torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(data.targets, device="cpu"),
        tuple(data.classes),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    )


def _stl10(root: Path, train: bool) -> ImageSet:
    split = "train" if train else "test"
    files = "train_X.bin, train_y.bin, unlabeled_X.bin, test_X.bin, test_y.bin, class_names.txt"
    data = _from_torchvision(datasets.STL10, root, files, split=split)
    return ImageSet(
        _in_memory(data.data.transpose(0, 2, 3, 1), Image.fromarray),
        torch.from_numpy(data.labels).long(),
        tuple(data.classes),
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2712),
    )


def _from_torchvision(kind: Any, root: Path, files: str, **split: bool | str) -> Any:
    """A torchvision data set, downloaded if it is not in ``root`` yet."""
    try:
        return kind(root, download=False, **split)
    except RuntimeError:
        pass  # not there, or not with the official md5 sums
    try:
        kind(root, download=True, **split)
        return kind(root, download=False, **split)  # STL10 does not check what it downloaded
    except (OSError, HTTPException, RuntimeError) as error:
        raise FileNotFoundError(
            f"{kind.__name__} is not in {root / kind.base_folder} or is damaged, and the download "
            f"failed ({error}). The folder must hold the official files: {files}. Download "
            f"{kind.url} and put it, packed or unpacked, into {root}"
        ) from error


def _tiny_imagenet(root: Path, train: bool) -> ImageSet:
    samples, classes = tiny_imagenet.samples(tiny_imagenet.find(root), train)
    paths, labels = zip(*samples, strict=True)
    return ImageSet(
        _in_memory(paths, _opened),
        torch.tensor(labels, device="cpu"),
        tuple(classes),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
    )


def _opened(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is damaged ({error}); unpack its archive again") from error


def _in_memory(sources: Sequence[Any], opened: Callable[[Any], Image.Image]) -> Tensor:
    """uint8 [N, 3, 32, 32], resized by PIL as torchvision's Resize does, in threads."""
    images = np.empty((len(sources), SIDE, SIDE, 3), np.uint8)

    def fill(number: int) -> None:
        image = opened(sources[number])
        images[number] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    with ThreadPoolExecutor() as threads:
        for _ in threads.map(fill, range(len(sources))):
            pass
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _fashion_mnist(root: Path, train: bool) -> ImageSet:
    data = fashion_mnist.find(root, train)
    border = (SIDE - data.data.shape[-1]) // 2
    grey = F.pad(data.data, [border] * 4)
    return ImageSet(
        grey[:, None].expand(-1, 3, -1, -1).contiguous(),
        data.targets,
        tuple(data.classes),
        # Of the training images' pixels without the border. Crops and flips are what the set's own
        # benchmark table, in its README, names for its best networks.
        mean=(0.2860, 0.2860, 0.2860),
        std=(0.3530, 0.3530, 0.3530),
    )


def _digits(root: Path, train: bool) -> ImageSet:
    """Two thirds for training and one for the test, as the quickstart splits them."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=1 / 3, stratify=labels, random_state=0)
    pixels, labels = parts[0::2] if train else parts[1::2]
    grey = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear").round().to(torch.uint8)
    return ImageSet(
        large.expand(-1, 3, -1, -1).contiguous(),
        torch.from_numpy(labels),
        tuple("0123456789"),
        mean=(0.3054, 0.3054, 0.3054),
        std=(0.3236, 0.3236, 0.3236),
        # A mirrored digit is another sign: 2 looks like 5, and 3 or 7 like none.
        augmentation=Augmentation(flip=False),
    )


DATA_SETS: dict[str, Callable[[Path, bool], ImageSet]] = {
    "digits": _digits,
    "cifar100": _cifar100,
    "cifar10": _cifar10,
    "stl10": _stl10,
    "fashion-mnist": _fashion_mnist,
    "tiny-imagenet": _tiny_imagenet,
    "tinyimagenet": _tiny_imagenet,  # as the published scripts spell it
}
