"""Which rows of a momentum memory a sample is compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rrd_kernels import validation as check

MODES = ("exact", "relax")


def draw_contrast_idx(
    idx: Tensor, n_data: int, size: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform draws of ``size`` rows for each sample, after a first column that is itself.

    Args:
        idx: int64 [B], the samples' numbers; the draws are made on its device.
        n_data: rows to draw from, with replacement and whatever their class, as published.
        size: K, the draws for each sample.
        generator: of that device. Default: the device's own.

    Returns:
        int64 [B, K + 1].

    Source: the published momentum memory of arXiv 2407.12073.

    Example:
        >>> draw_contrast_idx(torch.tensor([3, 8]), 50000, 1024).shape
        torch.Size([2, 1025])
    """
    drawn = torch.randint(n_data, (idx.shape[0], size + 1), generator=generator, device=idx.device)
    drawn[:, 0] = idx
    return drawn


class ContrastSampler:
    """Rows of other classes for each sample, in place of the published data set's own draws.

    The published data set draws for one sample at a time, in the loader's workers. Here a batch is
    drawn at once, after loading: on a GPU without the host, on a CPU in a fifth of the time.

    Args:
        targets: the training samples' classes, int [n_data] or a sequence.
        size: K, the negatives for each sample: distinct, unless there are fewer than K samples of
            other classes. Default 16384.
        mode: what the first column is: ``"exact"`` (default), the sample itself; ``"relax"``, any
            sample of its class.
        device: where the draws are made. Default: the CPU.
        generator: of that device. Default: the device's own.

    Shapes: called with int64 ``idx`` [B] on any device; returns int64 [B, K + 1] on ``device``.

    Raises:
        TypeError, ValueError: targets that are not one int for each sample, or that name fewer than
            two classes; a size or mode out of range.
        IndexError: a sample that has no target, on a CPU.

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
        targets = torch.as_tensor(targets, device="cpu")
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(f"targets must be integers; got {targets.dtype}")
        if targets.dim() != 1:
            raise ValueError(f"targets must be [n_data]; got shape {tuple(targets.shape)}")
        _, classes, counts = torch.unique(targets, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError(
                f"targets must be of two classes at least, for negatives; got {len(counts)}"
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
        self.repeats = (negatives < size).to(device)
        self.any_repeats = bool((negatives < size).any())
        self.all_repeat = bool((negatives < size).all())

    def __call__(self, idx: Tensor) -> Tensor:
        """The columns of samples ``idx``, [B, K + 1]."""
        if not isinstance(idx, Tensor) or idx.dtype != torch.int64 or idx.dim() != 1:
            raise TypeError("idx must be an int64 Tensor [B]")
        idx = idx.to(self.order.device)
        check.check_range("idx", idx, len(self.order))
        classes = self.classes[idx]
        first, counts = self.first[classes, None], self.counts[classes, None]
        if self.all_repeat:
            places = self._repeated(first, counts)
        else:
            on_host = self.order.device.type == "cpu"
            distinct = self._distinct_on_host if on_host else self._distinct_on_device
            places = distinct(first, counts)
            if self.any_repeats:
                repeats = self.repeats[classes, None]
                places = torch.where(repeats, self._repeated(first, counts), places)
        own = idx if self.mode == "exact" else self.order[self._of_class(first, counts)[:, 0]]
        return torch.cat((own[:, None], self.order[places]), dim=1)

    def _uniform(self, *shape: int) -> Tensor:
        # In float64 a product with a count is floored to each integer below it equally often.
        return torch.rand(
            shape, generator=self.generator, device=self.order.device, dtype=torch.float64
        )

    def _of_class(self, first: Tensor, counts: Tensor) -> Tensor:
        return first + (self._uniform(len(first), 1) * counts).long()

    def _repeated(self, first: Tensor, counts: Tensor) -> Tensor:
        """Places [B, K] outside each sample's class, with replacement."""
        places = (self._uniform(len(first), self.size) * (len(self.order) - counts)).long()
        return _skip(places, first, counts)

    def _distinct_on_host(self, first: Tensor, counts: Tensor) -> Tensor:
        """The same without replacement; any where there are too few."""
        import numpy as np

        seed = torch.randint(2**62, (1,), generator=self.generator).item()
        rng = np.random.default_rng(int(seed))
        drawn = np.zeros((len(first), self.size), dtype=np.int64)
        for row, count in zip(drawn, counts[:, 0].tolist(), strict=True):
            negatives = len(self.order) - count
            if negatives >= self.size:
                row[:] = rng.choice(negatives, self.size, replace=False, shuffle=False)
        return _skip(torch.from_numpy(drawn), first, counts)

    def _distinct_on_device(self, first: Tensor, counts: Tensor) -> Tensor:
        """As :meth:`_distinct_on_host`, by sorting random keys: no loop, no host sync."""
        place = torch.arange(len(self.order), device=self.order.device)
        keys = torch.rand(
            (len(first), len(self.order)), generator=self.generator, device=self.order.device
        )
        keys.masked_fill_((place >= first) & (place < first + counts), 2.0)
        return keys.topk(self.size, largest=False, sorted=False).indices


def _skip(places: Tensor, first: Tensor, counts: Tensor) -> Tensor:
    """Numbers among a sample's negatives to places in the order of all samples."""
    return places + (places >= first) * counts
