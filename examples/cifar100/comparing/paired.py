"""Statistics over a few seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats


def present(values: Sequence[float | None]) -> list[float]:
    """Without those that are missing."""
    return [value for value in values if value is not None]


def paired_difference(
    these: Sequence[float | None], others: Sequence[float | None]
) -> dict[str, Any] | None:
    """The mean of these − others, and its 95 % interval by Student's t with n − 1 degrees.

    Args:
        these, others: a value for each of the same seeds, None where there is none. A seed that
            lacks one of the two is left out.

    Returns:
        ``mean``; ``low`` and ``high``, the interval's ends, None of one seed; ``n``, the seeds.
        None where no seed has both.

    Source: Student, The probable error of a mean, Biometrika 6 (1908).
    """
    both = zip(these, others, strict=True)
    differences = [a - b for a, b in both if a is not None and b is not None]
    count = len(differences)
    if count == 0:
        return None
    mean = statistics.mean(differences)
    low = high = None
    if count > 1:
        error = statistics.stdev(differences) / math.sqrt(count)
        half = float(stats.t.ppf(0.975, count - 1)) * error
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "n": count}


def signed(value: float) -> str:
    """Two digits, with a sign as documents have it."""
    return f"{value:+.2f}".replace("-", "−")


def with_interval(difference: dict[str, Any] | None) -> str:
    """Such as "+1.20 [−0.31, +2.71]"."""
    if difference is None:
        return "–"
    interval = ""
    if difference["low"] is not None:
        interval = f" [{signed(difference['low'])}, {signed(difference['high'])}]"
    return signed(difference["mean"]) + interval
