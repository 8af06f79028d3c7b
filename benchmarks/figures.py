"""Figures as text, for the tables of the terminal and of the README."""

from collections.abc import Mapping
from typing import NamedTuple

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
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def best_sdpa(rates: Mapping[str, float]) -> str | None:
    """The fastest of PyTorch's attention kernels, given rates by implementation."""
    kernels = {name: rate for name, rate in rates.items() if name.startswith("SDPA")}
    return max(kernels, key=lambda name: kernels[name]) if kernels else None
