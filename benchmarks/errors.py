"""What a step errs by, and what roundings excuse."""

from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.step import TrainingStep

#: Tensor cores read ten bits behind the leading one.
TF32_EPS = 2.0**-10
#: What float32 products may err by beside the published code's own error. On a GPU ours are three
#: products of TF32. Tensor cores add eight of its terms at a time to a float32 sum and cut off the
#: rest, up to 2^-23 of the sum, always towards zero: the 16 cuts of D = 128 do not cancel as
#: roundings do. tests/test_properties.py grants the same.
CUT_OFF = 32 * 2.0**-24


def roundoff(case: Case) -> float:
    return TF32_EPS if case.format == "tf32" else torch.finfo(case.dtype).eps


def factor(case: Case, step: TrainingStep) -> float:
    """How many times the published code's own error another implementation may err.

    In float32 all round alike but for ``CUT_OFF``, and its error is one draw of many. So it is in
    half precision for those that round the similarities as it does; the others keep them in
    float32. In TF32 a kernel may leave to the tensor cores, which cut off bits, what the library
    rounds: in emulation this triples the gradient's error.
    """
    if case.format == "tf32":
        return 4.0
    half = torch.finfo(case.dtype).bits < 32
    return 0.5 if half and not step.rounds_similarities else 2.0


@dataclass(frozen=True)
class Errors:
    """Relative to the reference; the gradient's in the Frobenius norm."""

    #: ``None`` where only some samples are looked at.
    loss: float | None
    #: ``None`` of a loss alone.
    gradient: float | None
    #: Of all that has changed in the momentum memories.
    memory: float | None = None

    def within(self, allowed: "Errors") -> bool:
        """What was not looked at is not compared."""
        pairs = zip(astuple(self), astuple(allowed), strict=True)
        return all(found <= limit for found, limit in pairs if found is not None)  # not if NaN

    def times(self, factor: float, at_least: float, granted: float = 0.0) -> "Errors":
        """``factor`` times each, or times ``at_least`` where that is more, and ``granted``."""
        return self._each(lambda value: factor * max(value, at_least) + granted)

    def _each(self, change: Callable[[float], float]) -> "Errors":
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(self, **{name: change(value) for name, value in known.items()})


def relative(value: Tensor, expected: Tensor) -> float:
    """In the Frobenius norm."""
    return float((value.double() - expected).norm() / expected.norm())
