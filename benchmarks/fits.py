"""Power laws through points."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerLaw:
    """y = scale · x^exponent."""

    exponent: float
    scale: float
    #: The root mean square of log(y / fit), as a factor: 1.05 where points lie 5 % off.
    off_by: float
    points: int

    def __call__(self, x: float) -> float:
        return self.scale * x**self.exponent


def power_law(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw | None:
    """Least squares of log y on log x; ``None`` of fewer than three points, which any line fits.

    Args:
        xs, ys: positive.
    """
    if len(xs) < 3:
        return None
    log_x, log_y = ([math.log(value) for value in values] for values in (xs, ys))
    exponent, constant = statistics.linear_regression(log_x, log_y)
    squares = [(y - constant - exponent * x) ** 2 for x, y in zip(log_x, log_y, strict=True)]
    off_by = math.exp(math.sqrt(statistics.fmean(squares)))
    return PowerLaw(exponent, math.exp(constant), off_by, len(xs))
