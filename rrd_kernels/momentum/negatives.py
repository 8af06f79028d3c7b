"""Sampled columns: the rows of a momentum memory that a sample is compared with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rrd_kernels import validation as check

MODES = ("exact", "relax")


def draw_contrast_idx(
    idx: Tensor, n_data: int, size: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draws columns for each sample: the sample itself, then ``size`` rows drawn uniformly.

    Args:
        idx: int [B], any integer dtype, the samples' dataset indices. The draws are made on their
            device.
        n_data: number of rows to draw from, with replacement and of any class, as published.
        size: K, the number of draws for each sample.
        generator: a generator of that device. Default: the device's own.

    Returns:
        int64 [B, K + 1].

    Raises:
        TypeError: ``idx`` is not of an integer dtype.

    Source: the published momentum memory of arXiv 2407.12073.

    Example:
        >>> draw_contrast_idx(torch.tensor([3, 8]), 50000, 1024).shape
        torch.Size([2, 1025])
    """
    idx = check.as_int64("idx", idx)
    # Without a generator, leave the argument out: torch.compile with sizes that change needs that.
    given: dict[str, Any] = {} if generator is None else {"generator": generator}
    drawn = torch.randint(n_data, (idx.shape[0], size + 1), device=idx.device, **given)
    drawn[:, 0] = idx
    return drawn


class ContrastSampler:
    """Draws rows of other classes for each sample, as the published data set class does.

    The published data set draws for one sample at a time, in the loader's workers. Here a batch is
    drawn at once, after loading: on a GPU without the host, on a CPU in a third of the time.

    Args:
        targets: the training samples' classes, int [n_data] or a sequence of ints.
        size: K, the number of negatives for each sample. They are distinct, unless there are fewer
            than K samples of other classes. Default 16384.
        mode: the first column. ``"exact"`` (default): the sample itself. ``"relax"``: any sample of
            its class.
        device: device of the draws. Default: the CPU.
        generator: a generator of that device. Default: the device's own.

    Shapes: ``sampler(idx)`` takes ``idx`` [B] of any integer dtype on any device and returns int64
    [B, K + 1] on ``device``.

    Raises:
        TypeError, ValueError: the targets are not one int for each sample or have fewer than two
            classes, or the size or mode is out of range.
        IndexError: on a CPU, a sample has no target.

    Source: the instance-sampling data sets of the code that accompanies arXiv 2407.12073.

    Example:
        >>> sampler = ContrastSampler([0, 0, 1, 1, 2, 2], size=4)
        >>> sampler(torch.tensor([0])).sort().values
        tensor([[0, 2, 3, 4, 5]])
    """

    def __init__(
        self,
        targets: Tensor | Sequence[int],
        size: int = 16384,
        *,
        mode: str = "exact",
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check.check_size("size", size)
        check.check_choice("mode", mode, MODES)
        try:
            targets = torch.as_tensor(targets, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"targets must be integers: {error}") from error
        if targets.numel() == 0:
            raise ValueError("targets must not be empty")
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(f"targets must be integers; got {targets.dtype}")
        if targets.dim() != 1:
            raise ValueError(f"targets must be [n_data]; got shape {tuple(targets.shape)}")
        _, classes, counts = torch.unique(targets, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError(
                f"targets must have at least two classes, so that there are negatives; got "
                f"{len(counts)}"
            )
        self.size = size
        self.mode = mode
        self.generator = generator
        negatives = len(targets) - counts
        # Samples in the order of their classes: a class is one range, and its negatives the rest.
        self.order = classes.argsort(stable=True).to(device)
        self.classes = classes.to(device)
        self.first = (counts.cumsum(0) - counts).to(device)
        self.counts = counts.to(device)
        self.any_repeat = bool((negatives < size).any())
        self.all_repeat = bool((negatives < size).all())

    def __call__(self, idx: Tensor) -> Tensor:
        """Returns the columns of the samples ``idx`` [B], int64 [B, K + 1]."""
        whole = isinstance(idx, Tensor) and idx.dtype in check.INTEGERS
        if not whole or idx.dim() != 1:
            got = (
                f"{idx.dtype} {list(idx.shape)}" if isinstance(idx, Tensor) else type(idx).__name__
            )
            raise TypeError(
                f"idx must be an int64 Tensor [B], or of another integer dtype; got {got}"
            )
        device = self.order.device
        idx = check.as_int64("idx", idx.to(device))
        check.check_range("idx", idx, len(self.order))
        drawn = torch.empty((len(idx), self.size + 1), dtype=torch.int64, device=device)
        classes = self.classes[idx]
        drawn[:, 0] = idx if self.mode == "exact" else self._positives(classes)
        draw = self._draw_on_host if device.type == "cpu" else self._draw_on_device
        draw(classes, drawn[:, 1:])
        return drawn

    def _below(self, counts: Tensor, columns: int) -> Tensor:
        """Random integers [B, columns] in [0, count) for each of ``counts`` [B, 1]."""
        # Of integers, as MPS has no float64. The remainder favours no number by more than
        # count / 2**62 of its probability, less than 2**-30 for any data set.
        drawn = torch.randint(
            2**62, (len(counts), columns), generator=self.generator, device=counts.device
        )
        return drawn % counts

    def _positives(self, classes: Tensor) -> Tensor:
        """A random sample of each class in ``classes`` [B]."""
        place = self._below(self.counts[classes, None], 1).squeeze(1)
        return self.order[self.first[classes] + place]

    def _draw_on_host(self, classes: Tensor, out: Tensor) -> None:
        """Draws negatives of each class [B] into ``out`` [B, K], one sample at a time, so that they
        stay in a core's cache."""
        import numpy as np

        # Else the draw is on the default device, which may be another than the generator's.
        seed = torch.randint(2**62, (1,), generator=self.generator, device="cpu").item()
        rng = np.random.default_rng(int(seed))
        order = self.order.numpy()
        first, counts = self.first[classes].tolist(), self.counts[classes].tolist()
        for row, begin, count in zip(out.numpy(), first, counts, strict=True):
            negatives = len(order) - count
            repeat = negatives < self.size
            places = rng.choice(negatives, self.size, replace=repeat, shuffle=False)
            places += (places >= begin) * count
            np.take(order, places, out=row)

    def _draw_on_device(self, classes: Tensor, out: Tensor) -> None:
        """The same without a loop or a host sync: takes the places of the smallest random keys."""
        first, counts = self.first[classes, None], self.counts[classes, None]
        if self.any_repeat:
            places = self._below(len(self.order) - counts, out.shape[1])
            places += (places >= first) * counts
        if not self.all_repeat:
            place = torch.arange(len(self.order), device=self.order.device)
            keys = torch.rand(
                (len(classes), len(place)), generator=self.generator, device=place.device
            )
            keys.masked_fill_((place >= first) & (place < first + counts), 2.0)
            distinct = keys.topk(self.size, largest=False, sorted=False).indices
            if self.any_repeat:
                repeat = len(self.order) - counts < self.size
                distinct = torch.where(repeat, places, distinct)
            places = distinct
        out.copy_(self.order[places])
