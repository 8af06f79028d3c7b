"""Whether a step agrees with the float64 reference, before it is timed."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import Batch, State
from benchmarks.cases.sizes import Case, MomentumCase
from benchmarks.implementations.step import Step, enqueue
from rrd_kernels import reference

#: Of "loss", "gradient" and "memory", what is written to it: relative to the reference, in the
#: Frobenius norm. What was not looked at is absent.
Errors = dict[str, float]

#: A roundoff of each format's products. Tensor cores read ten bits of TF32 behind the leading one.
#: Of float32 ours on a GPU are three products of TF32, of which tensor cores add eight terms at a
#: time to a float32 sum and cut off the rest, up to 2^-23 of it, always towards zero: the 16 cuts
#: of D = 128 do not cancel as roundings do. tests/test_properties.py grants the same.
ROUNDOFF = {"float32": 2.0**-19, "tf32": 2.0**-10, "bfloat16": 2.0**-7, "float16": 2.0**-10}
#: How many times the error of plain PyTorch an implementation may err by. In half precision most of
#: it is the similarities' rounding, which none does twice. Else sums have other orders, and the
#: error is one draw of many: of 50 draws the momentum memory's published code had up to 4 times.
HALF_FACTOR, FACTOR = 2.0, 6.0


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Agreement:
    """What steps of ``case`` are compared with, made with ``state`` and called with ``batch``.

    ``expected`` holds the loss, a scalar, the gradient [B, D] or of the first samples, and what all
    memories' rows that are written change by, in float64; ``limits`` what each may err by.
    """

    case: Case
    state: State
    batch: Batch
    expected: dict[str, Tensor]
    limits: Errors

    def check(self, step: Step) -> Errors:
        """The errors of ``step``, which has not been called before; its write alone is checked too.

        Raises:
            ArithmeticError: it errs by more than it may.
        """
        writer = step.twin()  # of the state that the step is made with
        writer.write(*self.batch)
        self._compare(f"the write of {step.name}", {"memory": self._written(writer.state)})
        loss, grad = step(*self.batch)
        gradient = self.expected["gradient"]
        found = {
            "memory": self._written(step.state),
            "gradient": relative(grad[: len(gradient)] / step.loss_scale, gradient),
        }
        if step.compares_loss and "loss" in self.expected:
            found["loss"] = relative(loss, self.expected["loss"])
        self._compare(step.name, found)
        return found

    def _compare(self, name: str, found: Errors) -> None:
        if not all(error <= self.limits[key] for key, error in found.items()):  # not if NaN
            errors = (f"{key} {found[key]:.1e}, allowed {self.limits[key]:.1e}" for key in found)
            raise ArithmeticError(f"{name} errs by {'; '.join(errors)}")

    def _written(self, state: State) -> float:
        """The error of what was written; infinite if anything else has changed."""
        rows = written_rows(self.case, self.state, self.batch)
        for before, after in zip(self.state[:-1], state[:-1], strict=True):
            if not torch.equal(before.index_fill(0, rows, 0), after.index_fill(0, rows, 0)):
                return math.inf
        params = self.state[-1]
        if not isinstance(self.case, MomentumCase):  # the pointer
            params = (params + self.case.batch) % self.case.rows
        if not torch.equal(state[-1], params):
            return math.inf
        return relative(changes(self.state, state, rows), self.expected["memory"])


def written_rows(case: Case, state: State, batch: Batch) -> Tensor:
    """Which rows of the memories a step of the batch changes, [B]."""
    if isinstance(case, MomentumCase):
        return batch[2]
    return (state[1] + torch.arange(case.batch, device=state[1].device)) % case.rows


def changes(before: State, after: State, rows: Tensor) -> Tensor:
    """What these rows of each memory have changed by, [memories, B, D]."""
    pairs = zip(before[:-1], after[:-1], strict=True)
    return torch.stack([new[rows].double() - old[rows].double() for old, new in pairs])


def agreement(case: Case, state: State, batch: Batch, samples: int | None = None) -> Agreement:
    """What compares the implementations of ``case`` by its ``check``.

    Each may err by a factor times what plain PyTorch errs by in the case's format on the same
    input; or by one roundoff, should that come out exact by luck.

    Args:
        case: the size, format and temperatures.
        state: what the steps are made with.
        batch: what they are called with.
        samples: compares the gradient of the first so many samples alone, for sizes at which the
            reference of all of them would take minutes.
    """
    expected, plain = (_plain(case, state, batch, samples, d) for d in (torch.float64, case.dtype))
    factor = FACTOR if case.dtype == torch.float32 else HALF_FACTOR
    limits = {}
    for key, value in expected.items():
        # What is written is no product of TF32.
        least = ROUNDOFF[case.dtype_name if key == "memory" else case.format]
        limits[key] = max(factor * relative(plain[key], value), least)
    return Agreement(case, state, batch, expected, limits)


def _plain(
    case: Case, state: State, batch: Batch, samples: int | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The loss, gradient and changes of the memories as the reference has them in ``dtype``."""
    memories, params = [memory.to(dtype, copy=True) for memory in state[:-1]], state[-1].clone()
    z_s, z_t = (z.to(dtype, copy=True) for z in batch[:2])
    if not isinstance(case, MomentumCase):
        write = reference.enqueue_ if dtype == torch.float64 else enqueue
        write(memories[0], params, z_t)
    z_s.requires_grad_()
    loss = torch.zeros((), dtype=torch.float64, device=z_s.device)
    # A few samples at a time: B×K matrices, or B×K gathered rows, would fill gigabytes.
    few = 8 if isinstance(case, MomentumCase) else 128
    parts = (tensor[:samples].split(few) for tensor in (z_s, z_t, *batch[3:]))
    for part in zip(*parts, strict=True):
        total = _sum_of_losses(case, memories, params, *part)
        total.backward()
        loss += total.detach() / case.batch
    assert z_s.grad is not None
    if isinstance(case, MomentumCase):
        for memory, rows in zip(memories, (z_s.detach(), z_t), strict=True):
            reference.momentum_update_(memory, batch[2], rows, case.nce_m)
    written = changes(state, (*memories, params), written_rows(case, state, batch))
    gradient = z_s.grad[:samples].double() / case.batch
    return {"gradient": gradient, "memory": written} | ({} if samples else {"loss": loss})


def _sum_of_losses(
    case: Case, memories: list[Tensor], params: Tensor, z_s: Tensor, z_t: Tensor, *idx: Tensor
) -> Tensor:
    if isinstance(case, MomentumCase):
        return reference.sampled_relational_loss(
            *(z_s, z_t, *memories, *idx, params[2:4]),
            tau_s=case.tau_s,
            tau_t=case.tau_t,
            nce_t=case.nce_t,
            reduction="sum",
        )
    if z_s.dtype in (torch.float32, torch.float64):
        return reference.relational_loss(
            *(z_s, z_t, *memories), tau_s=case.tau_s, tau_t=case.tau_t, reduction="sum"
        )
    # Which computes half precision in float32: here the products are rounded as they are published.
    student, teacher = (F.normalize(z, dim=1) @ memories[0].T for z in (z_s, z_t))
    return reference.cross_entropy(student / case.tau_s, teacher / case.tau_t).sum()
