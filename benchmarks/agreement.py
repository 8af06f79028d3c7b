"""Whether a step agrees with the float64 reference, before it is timed.

A similarity rounded to the case's format moves a teacher logit by eps / tau_t, and its probability
by that much relative to itself: this is what the published code may err by, which is loose in
bfloat16 but 6e-6 in float32, where the same lines run. What it does err by is then the measure for
the others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Case, Embeddings
from benchmarks.peers import PublishedEager
from benchmarks.step import Step
from rrd_kernels import reference

#: Tensor cores read ten bits behind the leading one.
TF32_EPS = 2.0**-10
#: What float32 products may err by beside the published code's own error. On a GPU ours are three
#: products of TF32. Tensor cores add eight of its terms at a time to a float32 sum and cut off the
#: rest, up to 2^-23 of the sum, always towards zero: the 16 cuts of D = 128 do not cancel as
#: roundings do. tests/test_properties.py grants the same.
CUT_OFF = 32 * 2.0**-24


def roundoff(case: Case) -> float:
    return TF32_EPS if case.format == "tf32" else torch.finfo(case.dtype).eps


def factor(case: Case, step: Step) -> float:
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

    loss: float
    gradient: float

    def within(self, allowed: "Errors") -> bool:
        return self.loss <= allowed.loss and self.gradient <= allowed.gradient  # false for NaN


def reference_step(case: Case, memory: Tensor, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64, of a step that begins at slot 0 of ``memory``."""
    memory = memory.clone()
    z_s, z_t = (z.double() for z in embeddings)
    reference.enqueue_(memory, torch.zeros(1, dtype=torch.int64, device=memory.device), z_t)
    z_s.requires_grad_()
    total = torch.zeros((), dtype=torch.float64, device=memory.device)
    # A few samples at a time: B×K matrices of the whole batch would fill gigabytes.
    for student, teacher in zip(z_s.split(128), z_t.split(128), strict=True):
        loss = reference.relational_loss(
            student, teacher, memory, tau_s=case.tau_s, tau_t=case.tau_t, reduction="sum"
        )
        (loss / case.batch).backward()
        total += loss.detach() / case.batch
    assert z_s.grad is not None
    return total, z_s.grad


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


class Agreement:
    """Compares one call of each step with the reference, the published code's first.

    Args:
        case: the size, format and temperatures.
        memory: [K, D], what the steps are made with.
        embeddings: the batch.
    """

    def __init__(self, case: Case, memory: Tensor, embeddings: Embeddings) -> None:
        self.case = case
        self._embeddings = embeddings
        self._loss, self._gradient = reference_step(case, memory, embeddings)
        self._published: Errors | None = None

    def check(self, step: Step) -> Errors:
        """The errors of ``step``, which has not been called before.

        Raises:
            ArithmeticError: it errs by more than it may.
        """
        loss, grad = step(*self._embeddings)
        found = Errors(
            _relative(loss, self._loss),
            _relative(grad.double() / step.loss_scale, self._gradient),
        )
        allowed = self._allowed(step)
        if not found.within(allowed):
            raise ArithmeticError(f"{step.name} has {found}, allowed are {allowed}")
        if isinstance(step, PublishedEager):
            self._published = found
        return found

    def _allowed(self, step: Step) -> Errors:
        eps = roundoff(self.case)
        if self._published is None:
            return Errors(eps / self.case.tau_t, eps / self.case.tau_t)
        times = factor(self.case, step)
        granted = CUT_OFF if self.case.format == "float32" else 0.0
        # A mean may come out exact by luck: one rounding is granted at least.
        return Errors(
            times * max(self._published.loss, eps) + granted,
            times * max(self._published.gradient, eps) + granted,
        )
