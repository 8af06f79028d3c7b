"""Batches of an image set: training epochs that can be resumed anywhere, and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as transform

from images.augment import Draws, crop_and_flip, draw, normalise
from images.data import ImageSet


class Batch(NamedTuple):
    """Normalised images float32 [B, 3, 32, 32], and labels and the samples' numbers, int64 [B]."""

    images: Tensor
    labels: Tensor
    idx: Tensor


class TrainLoader(ABC):
    """Shuffled, augmented epochs; both kinds give the same batches for the same seed.

    An epoch's order and every sample's crop and flip are drawn before it from (seed, epoch) alone.
    They depend on neither the device, the number of workers nor where the epoch is entered, and
    no global random state is used.

    Of several processes each takes an equal part of every batch, which together are those of one
    process. Samples that are too few for one to each process are left out, others in each epoch.

    Args:
        images: the training set.
        batch_size: samples in each batch, of all processes; the last may be smaller.
        seed: not negative. Default 0.
        device: where the batches are wanted. Default: the CPU.
        drop_last: leave a smaller last batch out. Default False.
        part: (rank, processes). Default: all of it.

    Raises:
        ValueError: a batch size below one or not a multiple of the processes, a negative seed, or
            no batch in an epoch.

    Example:
        >>> loader = DeviceLoader(load("digits"), 64)
        >>> for images, labels, idx in loader.epoch(3, start_batch=10): ...
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1 or seed < 0:
            raise ValueError(
                f"the batch size must be at least 1 and the seed at least 0; got {batch_size=}, "
                f"{seed=}"
            )
        if batch_size % part[1]:
            raise ValueError(f"{batch_size=} must be a multiple of the {part[1]} processes")
        self.part = part
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        if len(self) == 0:
            raise ValueError(
                f"{len(images)} samples make no batch of {batch_size} with {drop_last=} and "
                f"{part[1]} processes; use a smaller batch size"
            )

    @property
    def samples(self) -> int:
        """Of an epoch, of all processes, with a smaller last batch."""
        return len(self.images) - len(self.images) % self.part[1]

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on, the same as of an unbroken epoch.

        Args:
            epoch: its number, not negative; each has its own order and augmentations.
            start_batch: 0 (default) to ``len(self)``, which leaves nothing.

        Returns:
            An iterator of ``Batch``, on the device.

        Raises:
            ValueError: a number out of range.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(
                f"the epoch must be at least 0 and start_batch in 0 to {len(self)}; got {epoch=}, "
                f"{start_batch=}"
            )
        # NumPy mixes both numbers into a seed; torch.Generator takes one, of 32 bits on a CPU. The
        # epoch comes first, being one word: a long seed's second would stand in for the epoch.
        generator = np.random.default_rng((epoch, self.seed))
        order = torch.from_numpy(generator.permutation(len(self.images)))
        draws = draw(len(self.images), self.images.augmentation, generator)
        order = order[: min(len(self) * self.batch_size, self.samples)]
        rank, processes = self.part
        batches = order.split(self.batch_size)[start_batch:]
        return self._batches([batch.chunk(processes)[rank] for batch in batches], draws)

    @abstractmethod
    def _batches(self, batches: list[Tensor], draws: Draws) -> Iterator[Batch]:
        """``batches`` of samples' numbers, int64 on the CPU; ``draws`` are of the whole set."""


class DeviceLoader(TrainLoader):
    """The whole set stays on the device, and each batch is augmented there at once.

    No workers, no copies and no host sync within an epoch. Takes 3 KB of the device's memory for
    each sample: 150 MB for CIFAR-100, 307 MB for Tiny-ImageNet. Arguments: ``TrainLoader``'s.
    """

    @cached_property
    def _resident(self) -> "_Resident":
        return _Resident(self.images, self.device)

    def _batches(self, batches: list[Tensor], draws: Draws) -> Iterator[Batch]:
        padding = self.images.augmentation.padding
        if not batches:
            return
        order, draws = torch.cat(batches).to(self.device, non_blocking=True), draws.to(self.device)
        for idx in order.split([len(batch) for batch in batches]):
            pixels = crop_and_flip(self._resident.pixels[idx], draws.rows(idx), padding)
            yield Batch(self._resident.normalised(pixels), self._resident.labels[idx], idx)


class WorkerLoader(TrainLoader):
    """The published pipeline: PIL and torchvision's transforms, sample by sample in processes.

    Args:
        workers: processes, started anew for each epoch; 0 works in this one. Default 8.

    The others are ``TrainLoader``'s.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
        workers: int = 8,
    ) -> None:
        super().__init__(
            images, batch_size, seed=seed, device=device, drop_last=drop_last, part=part
        )
        self.workers = workers

    def _batches(self, batches: list[Tensor], draws: Draws) -> Iterator[Batch]:
        loader = DataLoader(
            _AugmentedByPil(self.images, draws),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # DataLoader seeds its workers from here; by default it would advance PyTorch's global
            # state, which a run that is resumed would then find one draw further.
            generator=torch.Generator(),
        )
        for batch in _on_the_cpu(loader):
            yield Batch(*(part.to(self.device, non_blocking=True) for part in batch))


def _on_the_cpu(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its batches, which DataLoader makes on PyTorch's default device."""
    with torch.device("cpu"):
        batches = iter(loader)
    while True:
        with torch.device("cpu"):  # never while the caller works
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class _AugmentedByPil(Dataset[tuple[Tensor, int, int]]):
    """RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, with choices made beforehand."""

    def __init__(self, images: ImageSet, draws: Draws) -> None:
        self.images = images
        self.draws = draws

    def __getitem__(self, number: int) -> tuple[Tensor, int, int]:
        pixels = self.images.images[number]
        side = pixels.shape[-1]
        top, left, flip = (int(choice[number]) for choice in self.draws)
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        image = transform.pad(image, [self.images.augmentation.padding], fill=0)
        image = transform.crop(image, top, left, side, side)
        if flip:
            image = transform.hflip(image)
        values = transform.normalize(transform.to_tensor(image), self.images.mean, self.images.std)
        return values, int(self.images.labels[number]), number


class EvaluationLoader:
    """Every sample once, in its order and as it is.

    Args:
        images: the set, kept on the device whole.
        batch_size: samples in each batch; the last may be smaller.
        device: where it is kept and the batches come. Default: the CPU.

    Iterating gives ``Batch``; ``len`` is the number of batches.

    Raises:
        ValueError: a batch size below one.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, *, device: torch.device | str = "cpu"
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1; got {batch_size=}")
        self.images = images
        self.batch_size = batch_size
        self._resident = _Resident(images, torch.device(device))

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        pixels, labels = self._resident.pixels, self._resident.labels
        numbers = torch.arange(len(labels), device=labels.device)
        for first in range(0, len(labels), self.batch_size):
            batch = slice(first, first + self.batch_size)
            yield Batch(self._resident.normalised(pixels[batch]), labels[batch], numbers[batch])


class _Resident:
    """An image set on a device, uint8, and its normalisation there."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.pixels = images.images.to(device)
        self.labels = images.labels.to(device)
        self._mean = torch.tensor(images.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(images.std, device=device).view(-1, 1, 1)

    def normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self._mean, self._std)


LOADERS = ("device", "workers")


def train_loader(
    kind: str,
    images: ImageSet,
    batch_size: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    drop_last: bool = False,
    part: tuple[int, int] = (0, 1),
    workers: int = 8,
) -> TrainLoader:
    """A ``DeviceLoader`` for ``"device"``, a ``WorkerLoader`` for ``"workers"``.

    Args:
        kind: one of ``LOADERS``.
        workers: for ``"workers"`` alone.

    The others, and what they raise, are ``TrainLoader``'s.

    Raises:
        ValueError: an unknown kind.
    """
    common: dict[str, Any] = {"seed": seed, "device": device, "drop_last": drop_last, "part": part}
    if kind == "device":
        return DeviceLoader(images, batch_size, **common)
    if kind == "workers":
        return WorkerLoader(images, batch_size, workers=workers, **common)
    raise ValueError(f"no loader is called {kind!r}; known loaders: {', '.join(LOADERS)}")
