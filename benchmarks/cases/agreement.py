"""Whether a step agrees with the float64 reference, before it is timed."""

import math
from dataclasses import dataclass
from typing import Any

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
ROUNDOFF = {"float32": 2.0**-23, "tf32": 2.0**-10, "bfloat16": 2.0**-7, "float16": 2.0**-10}
#: Beside float32's. On a GPU ours are three products of TF32, of which tensor cores add eight terms
#: at a time to a float32 sum and cut off the rest, up to 2^-23 of it, always towards zero: the 16
#: cuts of D = 128 do not cancel as roundings do. tests/test_properties.py grants the same.
CUT_OFF = 32 * 2.0**-24


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


def factor(case: Case, step: Step) -> float:
    """How many times the error of plain PyTorch an implementation may err by.

    In half precision most of that is the similarities' rounding, which those that keep them in
    float32 do not have. In TF32 a kernel may leave to the tensor cores, which cut off bits, what
    the library rounds: in emulation this triples the gradient's error. Else both errors are one
    draw of many; where sums are in another order it was up to four times in 50 draws, of the
    momentum memory's published code.
    """
    if case.dtype != torch.float32:
        return 2.0 if step.rounds_similarities else 0.5
    if isinstance(case, MomentumCase) or step.sums_otherwise:
        return 6.0
    return 4.0 if case.format == "tf32" else 2.0


@dataclass(frozen=True)
class Agreement:
    """Compares steps that are made with ``state`` and called with ``batch``.

    ``expected`` holds the loss, a scalar, the gradient [B, D] or of the first samples, and, as
    "memory", what the written rows [B] of all memories change by, in float64; ``plain`` what plain
    PyTorch errs by in the case's format; ``granted`` what loss and gradient may err by beside that;
    ``last`` the pointer or the parameters after a step.
    """

    state: State
    batch: Batch
    rows: Tensor
    last: Tensor
    expected: dict[str, Tensor]
    case: Case
    plain: Errors
    granted: float

    def check(self, step: Step) -> Errors:
        """The errors of ``step``, which has not been called before.

        Raises:
            ArithmeticError: it errs by more than it may.
        """
        loss, grad = step(*self.batch)
        gradient = self.expected["gradient"]
        found = {
            "memory": self._written(step.state),
            "gradient": relative(grad[: len(gradient)] / step.loss_scale, gradient),
        }
        if step.compares_loss and "loss" in self.expected:
            found["loss"] = relative(loss, self.expected["loss"])
        limits = {key: self._limit(key, step) for key in found}
        if not all(error <= limits[key] for key, error in found.items()):  # not if NaN
            errors = (f"{key} {found[key]:.1e}, allowed {limits[key]:.1e}" for key in found)
            raise ArithmeticError(f"{step.name} errs by {'; '.join(errors)}")
        return found

    def _limit(self, key: str, step: Step) -> float:
        """A factor times what plain PyTorch errs by, or times one roundoff, should that come out
        exact by luck; and what is granted."""
        # What is written is no product of TF32.
        least = ROUNDOFF[self.case.dtype_name if key == "memory" else self.case.format]
        granted = 0.0 if key == "memory" else self.granted
        return factor(self.case, step) * max(self.plain[key], least) + granted

    def _written(self, state: State) -> float:
        """The error of what was written; infinite if anything else has changed."""
        elsewhere = (
            [memory.index_fill(0, self.rows, 0) for memory in pair]
            for pair in zip(self.state[:-1], state[:-1], strict=True)
        )
        if not all(torch.equal(*pair) for pair in [(state[-1], self.last), *elsewhere]):
            return math.inf
        return relative(changes(self.state, state, self.rows), self.expected["memory"])


def changes(before: State, after: State, rows: Tensor) -> Tensor:
    """What these rows of each memory have changed by, [memories, B, D]."""
    pairs = zip(before[:-1], after[:-1], strict=True)
    return torch.stack([new[rows].double() - old[rows].double() for old, new in pairs])


def agreement(case: Case, state: State, batch: Batch, samples: int | None = None) -> Agreement:
    """What compares steps of ``case``, made with ``state`` and called with ``batch``.

    With ``samples`` the gradient of the first so many alone is compared, for sizes at which the
    reference of all of them would take minutes.
    """
    if isinstance(case, MomentumCase):
        rows, last = batch[2], state[2]
    else:
        rows = (state[1] + torch.arange(case.batch, device=state[1].device)) % case.rows
        last = (state[1] + case.batch) % case.rows
    expected, rounded = (
        _plain(case, state, batch, rows, samples, dtype) for dtype in (torch.float64, case.dtype)
    )
    plain = {key: relative(rounded[key], value) for key, value in expected.items()}
    granted = CUT_OFF if case.format == "float32" else 0.0
    if samples:  # of a growing memory: sums of K float32 terms, whose roundings are a random walk
        granted += math.sqrt(case.rows) * 2.0**-24
    return Agreement(state, batch, rows, last, expected, case, plain, granted)


def _plain(
    case: Case, state: State, batch: Batch, rows: Tensor, samples: int | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The loss, the gradient and the changes of the rows, in plain PyTorch and in ``dtype``."""
    momentum = isinstance(case, MomentumCase)
    memories, last = [memory.to(dtype, copy=True) for memory in state[:-1]], state[-1].clone()
    z_s, z_t = (z.to(dtype, copy=True) for z in batch[:2])
    if not momentum:
        write = reference.enqueue_ if dtype == torch.float64 else enqueue
        write(memories[0], last, z_t)
    z_s.requires_grad_()
    loss = torch.zeros((), dtype=torch.float64, device=z_s.device)
    # A few samples at a time: B×K matrices, or B×K gathered rows, would fill gigabytes.
    parts = (tensor[:samples].split(8 if momentum else 128) for tensor in (z_s, z_t, *batch[3:]))
    for part in zip(*parts, strict=True):
        total = _sum_of_losses(case, (*memories, last), *part)
        total.backward()
        loss += total.detach() / case.batch
    assert z_s.grad is not None
    if isinstance(case, MomentumCase):
        for memory, unit in zip(memories, (z_s.detach(), z_t), strict=True):
            reference.momentum_update_(memory, rows, unit, case.nce_m)
    written = changes(state, (*memories, last), rows)
    gradient = z_s.grad[:samples].double() / case.batch
    return {"gradient": gradient, "memory": written} | ({} if samples else {"loss": loss})


def _sum_of_losses(case: Case, state: State, z_s: Tensor, z_t: Tensor, *idx: Tensor) -> Tensor:
    *memories, params = state
    taus: Any = {"tau_s": case.tau_s, "tau_t": case.tau_t, "reduction": "sum"}
    if isinstance(case, MomentumCase):
        views = (z_s, z_t, *memories, *idx, params[2:4])
        return reference.sampled_relational_loss(*views, nce_t=case.nce_t, **taus)
    if z_s.dtype in (torch.float32, torch.float64):
        return reference.relational_loss(z_s, z_t, *memories, **taus)
    # The reference would multiply in float32.
    student, teacher = (F.normalize(z, dim=1) @ memories[0].T for z in (z_s, z_t))
    return reference.cross_entropy(student / case.tau_s, teacher / case.tau_t).sum()
