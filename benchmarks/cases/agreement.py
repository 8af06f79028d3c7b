"""Whether a step agrees with the float64 reference, before it is timed.

What the published code may err by is derived here; what it does err by is the measure for the
others.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.inputs import Batch, State
from benchmarks.cases.sizes import Case, DrawCase, MomentumCase
from benchmarks.implementations.fifo import PublishedEager
from benchmarks.implementations.step import Step, TrainingStep
from rrd_kernels import reference

#: Of "loss", "gradient" and "memory", all that is written: relative to the reference, in the
#: Frobenius norm. What was not looked at is absent.
Errors = dict[str, float]

#: Tensor cores read ten bits behind the leading one.
TF32_EPS = 2.0**-10
#: What float32 products may err by beside the published code's own error. On a GPU ours are three
#: products of TF32. Tensor cores add eight of its terms at a time to a float32 sum and cut off the
#: rest, up to 2^-23 of the sum, always towards zero: the 16 cuts of D = 128 do not cancel as
#: roundings do. tests/test_properties.py grants the same.
CUT_OFF = 32 * 2.0**-24


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


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


class Agreement(ABC):
    """Compares one call of each step with the reference.

    Given first, the published code is the measure for the others; without it they may err by what
    it may.

    Args:
        case: the size, format and temperatures.
        state: what the steps are made with.
        batch: what they are called with.
    """

    #: Of the loss, a scalar, and the gradient [B, D] or of the first samples, in float64.
    expected: dict[str, Tensor]

    def __init__(self, case: Case, state: State, batch: Batch) -> None:
        self.case, self.state, self.batch = case, state, batch
        self._published: Errors | None = None

    def check(self, step: TrainingStep) -> Errors:
        """The errors of ``step``, which has not been called before; its write alone is checked too.

        Raises:
            ArithmeticError: it errs by more than it may.
        """
        writer = step.twin()  # of the state that the step is made with
        writer.write(*self.batch)
        self.compare(f"the write of {step.name}", writer.state)
        loss, grad = step(*self.batch)
        found = self.compare(
            step.name,
            step.state,
            loss if step.returns_cross_entropy else None,
            grad.double() / step.loss_scale,
            self._limits(step),
        )
        if step.name == PublishedEager.name:
            self._published = found
        return found

    def compare(
        self,
        name: str,
        state: State,
        loss: Tensor | None = None,
        gradient: Tensor | None = None,
        limits: Errors | None = None,
    ) -> Errors:
        """The errors of what was computed and of the state as it was left.

        Raises:
            ArithmeticError: they pass ``limits``, by default those of an implementation whose
                peer, the published code, was not measured.
        """
        limits = limits or self._limits()
        found = {"memory": self._written(state)}
        for key, value in (("loss", loss), ("gradient", gradient)):
            if value is not None and key in self.expected:
                expected = self.expected[key]
                found[key] = relative(value[: len(expected)] if value.ndim else value, expected)
        if not all(error <= limits[key] for key, error in found.items()):  # not if NaN
            raise ArithmeticError(f"{name} errs by {_text(found)}, allowed is {_text(limits)}")
        return found

    def _limits(self, step: TrainingStep | None = None) -> Errors:
        limits = self._published_limits()
        if step is not None and step.name == PublishedEager.name:
            return limits
        granted = CUT_OFF if self.case.format == "float32" else 0.0
        for key in ("loss", "gradient"):
            if step is not None and self._published is not None and not step.sums_otherwise:
                # A mean may come out exact by luck: one rounding is granted at least.
                measured = max(self._published[key], roundoff(self.case))
                limits[key] = factor(self.case, step) * measured
            limits[key] += granted
        return limits

    @abstractmethod
    def _written(self, state: State) -> float:
        """The error of all that a step has changed in its state, relative to that."""

    @abstractmethod
    def _published_limits(self) -> Errors:
        """What the published code may err by, and every implementation in what it writes."""


def _text(errors: Errors) -> str:
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


class FifoAgreement(Agreement):
    """A similarity rounded to the case's format moves a teacher logit by eps / tau_t, and its
    probability by that much relative to itself: this is what the published code may err by, which
    is loose in bfloat16 but 6e-6 in float32, where the same lines run. To this comes that sums of K
    terms are float32: in one chain their roundings, 2^-24 each, add up like a random walk.

    Args:
        samples: looks at the gradient of the first so many samples alone, for sizes at which the
            reference of all of them would take minutes.
    """

    def __init__(self, case: Case, state: State, batch: Batch, samples: int | None = None) -> None:
        super().__init__(case, state, batch)
        memory, pointer = (tensor.clone() for tensor in state)
        z_s, z_t = (z.double() for z in batch)
        reference.enqueue_(memory, pointer, z_t)
        z_s, z_t = z_s[:samples].requires_grad_(), z_t[:samples]
        total = z_s.new_zeros(())
        # A few samples at a time: B×K matrices of the whole batch would fill gigabytes.
        for student, teacher in zip(z_s.split(128), z_t.split(128), strict=True):
            loss = reference.relational_loss(
                student, teacher, memory, tau_s=case.tau_s, tau_t=case.tau_t, reduction="sum"
            )
            (loss / case.batch).backward()
            total += loss.detach() / case.batch
        assert z_s.grad is not None
        self.expected = {"gradient": z_s.grad} | ({} if samples else {"loss": total})

    def _written(self, state: State) -> float:
        (before, start), (after, end) = self.state, state
        slots = (start + torch.arange(self.case.batch, device=start.device)) % self.case.rows
        expected, moved = before.double(), start.clone()
        reference.enqueue_(expected, moved, self.batch[1].double())
        elsewhere = [memory.index_fill(0, slots, 0) for memory in (before, after)]
        if not (torch.equal(end, moved) and torch.equal(*elsewhere)):
            return math.inf
        return relative(after[slots], expected[slots])

    def _published_limits(self) -> Errors:
        allowed = roundoff(self.case) / self.case.tau_t + math.sqrt(self.case.rows) * 2.0**-24
        # The norm and the quotient may be rounded to the format, half an eps each; the norm is a
        # root, which halves its error, of D squares that are added in float32.
        written = torch.finfo(self.case.dtype).eps + self.case.dim * 2.0**-25
        return {"loss": allowed, "gradient": allowed, "memory": written}


class MomentumAgreement(Agreement):
    """Under the exponential both softmaxes are nearly flat and the gradient is their difference:
    how much of it roundings spoil depends on the data. So the published code may err by what the
    reference errs by in float32, times ``PUBLISHED_FACTOR``.
    """

    #: Its sums are in another order, and either error is one draw of many: 4 is the most that 50
    #: draws of two small sizes gave.
    PUBLISHED_FACTOR = 6.0

    def __init__(self, case: MomentumCase, state: State, batch: Batch) -> None:
        super().__init__(case, state, batch)
        self.nce_t = case.nce_t
        self.expected = self._reference(torch.float64)
        rounded = self._reference(torch.float32)
        self._rounded = {key: relative(rounded[key], self.expected[key]) for key in rounded}

    def _written(self, state: State) -> float:
        idx = self.batch[2]
        pairs = list(zip(state[:2], self.state[:2], strict=True))
        changes = [after[idx].double() - before[idx].double() for after, before in pairs]
        strays = [(after - before).index_fill_(0, idx, 0).norm() for after, before in pairs]
        whole = self.expected["memory"]
        found = relative(torch.stack(changes), whole)
        return found + float(torch.stack(strays).norm() / whole.norm())

    def _published_limits(self) -> Errors:
        least = roundoff(self.case)
        errors = self._rounded.items()
        return {key: self.PUBLISHED_FACTOR * max(error, least) for key, error in errors}

    def _reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Loss, gradient, and what both memories' rows at idx change by, [2, B, D]."""
        memory_v1, memory_v2, params = self.state
        z_s, z_t, _, contrast_idx = self.batch
        z_s, z_t = z_s.to(dtype).detach().requires_grad_(), z_t.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=z_s.device)
        # A few samples at a time, as each takes K + 1 rows.
        few = (z.split(8) for z in (z_s, z_t, contrast_idx))
        for student, teacher, wanted in zip(*few, strict=True):
            loss = reference.sampled_relational_loss(
                *(student, teacher, memory_v1, memory_v2, wanted, params[2:4]),
                tau_s=self.case.tau_s,
                tau_t=self.case.tau_t,
                nce_t=self.nce_t,
                reduction="sum",
            )
            (loss / self.case.batch).backward()
            total += loss.detach() / self.case.batch
        assert z_s.grad is not None
        changes = torch.stack(list(self._changes(z_s.detach(), z_t)))
        return {"loss": total, "gradient": z_s.grad, "memory": changes}

    def _changes(self, z_s: Tensor, z_t: Tensor) -> Iterator[Tensor]:
        nce_m, idx = float(self.state[2][4]), self.batch[2]
        for memory, new in zip(self.state[:2], (z_s, z_t), strict=True):
            rows = memory[idx].to(new.dtype)
            reference.momentum_update_(rows, torch.arange(len(idx), device=idx.device), new, nce_m)
            yield rows.double() - memory[idx].double()


class DrawAgreement:
    """Of each sample's columns the first is itself, and the others are distinct, of other
    classes."""

    def __init__(self, batch: Batch) -> None:
        (self.idx,) = batch

    def check(self, step: Step) -> Errors:
        (targets,) = step.state
        columns = step(self.idx)
        own, drawn = columns[:, 0], columns[:, 1:]
        others = targets[drawn] != targets[self.idx, None]
        distinct = drawn.sort(dim=1).values.diff(dim=1) > 0
        if not (torch.equal(own, self.idx) and others.all() and distinct.all()):
            raise ArithmeticError(f"{step.name} does not draw distinct samples of other classes")
        return {}


def agreement(case: Case, state: State, batch: Batch) -> Any:
    """What compares the implementations of ``case``, by its ``check``."""
    if isinstance(case, DrawCase):
        return DrawAgreement(batch)
    if isinstance(case, MomentumCase):
        return MomentumAgreement(case, state, batch)
    return FifoAgreement(case, state, batch)
