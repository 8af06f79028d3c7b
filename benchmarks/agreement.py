"""Whether a step agrees with the float64 reference, before it is timed.

What the published code may err by is derived here, what it does err by is the measure for the
others.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.cases import AnyCase, Case, DrawCase, MomentumCase
from benchmarks.errors import CUT_OFF, Errors, factor, relative, roundoff
from benchmarks.inputs import Batch, State
from benchmarks.negatives import DrawAgreement
from benchmarks.peers import PublishedEager
from benchmarks.step import Step, TrainingStep
from benchmarks.turns import with_twins
from rrd_kernels import reference


class Check(Protocol):
    """Whether an implementation does what its case asks for."""

    def check(self, step: Step) -> Errors | None:
        """The errors of ``step``, which has not been called before.

        Raises:
            ArithmeticError: it errs by more than it may.
        """


class Agreement(ABC):
    """Compares one call of each step with the reference.

    Given first, the published code is the measure for the others; without it they may err by what
    it may.

    Args:
        case: the size, format and temperatures.
        state: what the steps are made with.
        batch: what they are called with.
    """

    def __init__(self, case: Case, state: State, batch: Batch) -> None:
        self.case = case
        self.state = state
        self.batch = batch
        self._published: Errors | None = None

    def check(self, step: Step) -> Errors:
        """The errors of ``step``, which has not been called before.

        Raises:
            ArithmeticError: it errs by more than it may.
        """
        assert isinstance(step, TrainingStep)
        loss, grad = step(*self.batch)
        found = self._errors(loss, grad.double() / step.loss_scale, step.state)
        _compare(step.name, found, self._allowed(step))
        if step.name == PublishedEager.name:
            self._published = found
        return found

    def check_result(self, name: str, loss: Tensor, gradient: Tensor | None, state: State) -> None:
        """The same of a step that has been made elsewhere, what it wrote included.

        Args:
            name: of what has made it.
            loss: mean, a scalar.
            gradient: of it with respect to z_s, [B, D], where there is one.
            state: as it was left.

        Raises:
            ArithmeticError: it errs by more than it may.
        """
        found = self._errors(loss, None if gradient is None else gradient.double(), state)
        _compare(name, found, self._allowed_unmeasured())
        self._compare_written(name, state)

    def _allowed(self, step: TrainingStep) -> Errors:
        if self._published is None and step.name == PublishedEager.name:
            return self._allowed_first()
        if self._published is None:
            return self._allowed_unmeasured()
        # A mean may come out exact by luck: one rounding is granted at least.
        granted = self._granted
        return self._published.times(factor(self.case, step), roundoff(self.case), granted)

    def _allowed_unmeasured(self) -> Errors:
        """To others than the published code, without its errors."""
        return self._allowed_first().times(1.0, 0.0, self._granted)

    @property
    def _granted(self) -> float:
        return CUT_OFF if self.case.format == "float32" else 0.0

    def check_write(self, step: TrainingStep) -> float:
        """The error of what ``step``, which has not been called before, writes of the batch.

        Raises:
            ArithmeticError: it errs by more than it may, or writes elsewhere too.
        """
        step.write(*self.batch)
        return self._compare_written(step.name, step.state)

    def _compare_written(self, name: str, state: State) -> float:
        found, allowed = self._written(state), self._allowed_written()
        if not found <= allowed:
            raise ArithmeticError(f"{name} writes rows off by {found}, allowed is {allowed}")
        return found

    @abstractmethod
    def _written(self, state: State) -> float:
        """The error of all that a step has changed in its state, relative to that."""

    @abstractmethod
    def _allowed_written(self) -> float:
        """To every implementation."""

    @abstractmethod
    def _errors(self, loss: Tensor, gradient: Tensor | None, state: State) -> Errors:
        """Of what a step has returned and what it has left in its state."""

    @abstractmethod
    def _allowed_first(self) -> Errors:
        """To the published code."""


def _compare(name: str, found: Errors, allowed: Errors) -> None:
    if not found.within(allowed):
        raise ArithmeticError(f"{name} has {found}, allowed are {allowed}")


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
        self._samples = samples
        memory, pointer = (tensor.clone() for tensor in state)
        z_s, z_t = (z.double() for z in batch)
        reference.enqueue_(memory, pointer, z_t)
        z_s, z_t = z_s[:samples], z_t[:samples]
        z_s.requires_grad_()
        total = z_s.new_zeros(())
        # A few samples at a time: B×K matrices of the whole batch would fill gigabytes.
        for student, teacher in zip(z_s.split(128), z_t.split(128), strict=True):
            loss = reference.relational_loss(
                student, teacher, memory, tau_s=case.tau_s, tau_t=case.tau_t, reduction="sum"
            )
            (loss / case.batch).backward()
            total += loss.detach() / case.batch
        assert z_s.grad is not None
        self._loss, self._gradient = total, z_s.grad

    def _written(self, state: State) -> float:
        (before, start), (after, end) = self.state, state
        slots = (start + torch.arange(self.case.batch, device=start.device)) % self.case.rows
        expected, moved = before.double(), start.clone()
        reference.enqueue_(expected, moved, self.batch[1].double())
        elsewhere = [memory.index_fill(0, slots, 0) for memory in (before, after)]
        if not (torch.equal(end, moved) and torch.equal(*elsewhere)):
            return math.inf
        return relative(after[slots], expected[slots])

    def _allowed_written(self) -> float:
        """The norm and the quotient may be rounded to the format, half an eps each; the norm is a
        root, which halves its error, of D squares that are added in float32."""
        return torch.finfo(self.case.dtype).eps + self.case.dim * 2.0**-25

    def _errors(self, loss: Tensor, gradient: Tensor | None, state: State) -> Errors:
        whole = self._samples is None
        return Errors(
            relative(loss, self._loss) if whole else None,
            None if gradient is None else relative(gradient[: self._samples], self._gradient),
        )

    def _allowed_first(self) -> Errors:
        allowed = roundoff(self.case) / self.case.tau_t + math.sqrt(self.case.rows) * 2.0**-24
        return Errors(allowed, allowed)


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
        self._loss, self._gradient, self._changes = self._reference_step(torch.float64)
        expected = (self._loss, self._gradient, self._changes)
        pairs = zip(self._reference_step(torch.float32), expected, strict=True)
        self._rounded = Errors(*(relative(*pair) for pair in pairs))

    def _errors(self, loss: Tensor, gradient: Tensor | None, state: State) -> Errors:
        return Errors(
            relative(loss, self._loss),
            None if gradient is None else relative(gradient, self._gradient),
            self._written(state),
        )

    def _written(self, state: State) -> float:
        changes, strays = [], []
        idx = self.batch[2]
        for after, before in zip(state[:2], self.state[:2], strict=True):
            changes.append(after[idx].double() - before[idx].double())
            strays.append((after - before).index_fill_(0, idx, 0).norm())
        found = relative(torch.stack(changes), self._changes)
        return found + float(torch.stack(strays).norm() / self._changes.norm())

    def _allowed_written(self) -> float:
        allowed = self._allowed_first().memory
        assert allowed is not None
        return allowed

    def _allowed_first(self) -> Errors:
        return self._rounded.times(self.PUBLISHED_FACTOR, roundoff(self.case))

    def _reference_step(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient, and what both memories' rows at idx change by, [2, B, D]."""
        memory_v1, memory_v2, params = self.state
        _, nce_t, _, _, nce_m = params.tolist()
        z_s, z_t, idx, contrast_idx = self.batch
        z_s, z_t = z_s.to(dtype).detach().requires_grad_(), z_t.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=z_s.device)
        # A few samples at a time, as each takes K + 1 rows.
        few = (z.split(8) for z in (z_s, z_t, contrast_idx))
        for student, teacher, wanted in zip(*few, strict=True):
            loss = reference.sampled_relational_loss(
                student,
                teacher,
                memory_v1,
                memory_v2,
                wanted,
                params[2:4],
                tau_s=self.case.tau_s,
                tau_t=self.case.tau_t,
                nce_t=nce_t,
                reduction="sum",
            )
            (loss / self.case.batch).backward()
            total += loss.detach() / self.case.batch
        assert z_s.grad is not None
        changes = []
        every = torch.arange(len(idx), device=idx.device)
        for memory, new in ((memory_v1, z_s.detach()), (memory_v2, z_t)):
            rows = memory[idx].to(dtype)
            reference.momentum_update_(rows, every, new, nce_m)
            changes.append(rows.double() - memory[idx].double())
        return total, z_s.grad, torch.stack(changes)


def agreement(case: AnyCase, state: State, batch: Batch) -> Check:
    """What compares the implementations of ``case``."""
    if isinstance(case, DrawCase):
        return DrawAgreement(state, batch)
    if isinstance(case, MomentumCase):
        return MomentumAgreement(case, state, batch)
    assert isinstance(case, Case)
    return FifoAgreement(case, state, batch)


class Agreed(NamedTuple):
    """What may be timed of an implementation, and what it errs by."""

    #: The one that was checked, and its twins.
    steps: list[Step]
    errors: Errors | None
    #: That of what is written alone; ``None`` where nothing is.
    written: float | None


def agreed(step: Step, judge: Check, cache_bytes: int | None) -> Agreed:
    """``step``, which has not been called before, and others like it, when it agrees.

    Args:
        step: is called, and so warms up.
        judge: of its case.
        cache_bytes: as in :func:`benchmarks.turns.copies_wanted`.

    Raises:
        ArithmeticError: it errs by more than it may, in what it writes alone too.
    """
    writer = step.twin()  # of the state that the step is made with
    errors, written = judge.check(step), None
    if isinstance(judge, Agreement) and isinstance(writer, TrainingStep):
        written = judge.check_write(writer)
    return Agreed(with_twins(step, cache_bytes), errors, written)
