"""Whether a step agrees with the float64 reference, before it is timed.

A similarity rounded to the case's dtype moves a teacher logit by eps / tau_t, and its probability
by that much relative to itself: this is what the published code may err by, which is loose in
bfloat16 but 6e-6 in float32, where the same lines run. What it does err by is then the measure for
the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Case, Embeddings
from benchmarks.peers import PublishedEager, Step
from rrd_kernels import reference


def factor(dtype: torch.dtype) -> float:
    """How many times the published code's own error another implementation may err.

    In float32 all round alike, and its error is one draw of many. In half precision it also rounds
    the logits, which the others keep in float32.
    """
    return 2.0 if torch.finfo(dtype).bits >= 32 else 0.5


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


def check_agreement(
    case: Case, steps: Sequence[Step], memory: Tensor, embeddings: Embeddings
) -> Mapping[str, Errors]:
    """The errors of one call of each step, by name.

    Args:
        case: the size, dtype and temperatures.
        steps: not called before; the published code first.
        memory: [K, D], what the steps were made with.
        embeddings: the batch.

    Raises:
        ArithmeticError: a step errs by more than it may.
    """
    expected_loss, expected_grad = reference_step(case, memory, embeddings)
    eps = torch.finfo(case.dtype).eps
    allowed = Errors(eps / case.tau_t, eps / case.tau_t)
    errors = {}
    for step in steps:
        loss, grad = step(*embeddings)
        found = Errors(_relative(loss, expected_loss), _relative(grad, expected_grad))
        if not found.within(allowed):
            raise ArithmeticError(f"{case.name}: {step.name} has {found}, allowed are {allowed}")
        if isinstance(step, PublishedEager):
            # A mean may come out exact by luck: one rounding is granted at least.
            times = factor(case.dtype)
            allowed = Errors(times * max(found.loss, eps), times * max(found.gradient, eps))
        errors[step.name] = found
    return errors
