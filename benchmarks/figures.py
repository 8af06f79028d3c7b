"""Figures as text, for the tables of the terminal and of the README."""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.ceilings import Bound
from benchmarks.negatives import PublishedLoader
from benchmarks.peers import PublishedEager

#: What a case's published code is called.
PUBLISHED = (PublishedEager.name, PublishedLoader.name)
MISSING = "–"


class Units(NamedTuple):
    """Of times and rates."""

    per_second: float
    time: str
    operations: float
    rate: str


CPU_UNITS = Units(1e3, "ms", 1e9, "GFLOP/s")
CUDA_UNITS = Units(1e6, "µs", 1e12, "TFLOP/s")


def three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def best_sdpa(rates: Mapping[str, float]) -> str | None:
    """The fastest of PyTorch's attention kernels, given rates by implementation."""
    kernels = {name: rate for name, rate in rates.items() if name.startswith("SDPA")}
    return max(kernels, key=lambda name: kernels[name]) if kernels else None


def share_of_ceiling(bound: Bound | None, seconds: float) -> str:
    """Such as "81% (compute)"."""
    return MISSING if bound is None else f"{bound.share(seconds):.0%} ({bound.by})"
