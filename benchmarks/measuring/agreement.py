"""Whether a step agrees with the float64 reference, before it is timed."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import Batch, State
from benchmarks.cases.sizes import Case, ContrastiveCase, FamilyCase, MomentumCase
from benchmarks.implementations.step import Step, enqueue
from rrd_kernels import reference

TF32 = 2.0**-10  # a roundoff: tensor cores read ten bits behind the leading one
#: Beside float32's. On a GPU ours are three products of TF32, of which tensor cores add eight terms
#: at a time to a float32 sum and cut off the rest, up to 2^-23 of it, always towards zero: the 16
#: cuts of D = 128 do not cancel as roundings do. tests/test_properties.py grants the same.
CUT_OFF = 32 * 2.0**-24


def relative(value: Tensor, expected: Tensor) -> float:
    """The error in the Frobenius norm; 0 if there is none, where nothing is expected too."""
    error = (value.double() - expected).norm()
    return float(error / expected.norm()) if error else 0.0


def factor(case: Case, step: Step) -> float:
    """How many times the error of plain PyTorch an implementation may err by. In half precision
    most of that is the similarities' rounding, which those that keep them in float32 do not have.
    In TF32 a kernel may leave to the tensor cores, which cut off bits, what the library rounds: in
    emulation this triples the gradient's error. Else both errors are one draw of many; where sums
    are in another order, up to four times in 50 draws (the momentum memory's published code)."""
    if case.dtype != torch.float32:
        return 2.0 if step.rounds_similarities else 0.5
    if isinstance(case, MomentumCase) or step.sums_otherwise:
        return 6.0
    return 4.0 if case.format == "tf32" else 2.0


class Agreement:
    """Compares steps that are made with ``state`` and called once with ``batch``: the "loss", the
    "gradient" and the "memory", what written rows change by. They are ``expected`` as in
    float64; ``plain`` is what plain PyTorch errs by in the case's format. With ``samples``, for
    sizes at which the reference takes minutes, the gradient of so many is compared, and no loss."""

    def __init__(self, case: Case, state: State, batch: Batch, samples: int | None = None) -> None:
        self.case, self.state, self.batch, self.samples = case, state, batch, samples
        if isinstance(case, MomentumCase):
            self.rows, self.last = batch[2], state[2]
        else:
            moved = -case.batch if case.newest_first else case.batch
            self.last = (state[1] + moved) % case.rows
            first = self.last if case.newest_first else state[1]
            self.rows = (first + torch.arange(case.batch, device=first.device)) % case.rows
        self.expected, rounded = (self._plain(dtype) for dtype in (torch.float64, case.dtype))
        roundoff = torch.finfo(case.dtype).eps
        products = TF32 if case.format == "tf32" else roundoff
        # At least one, should plain PyTorch come out exact by luck.
        written = torch.finfo(state[0].dtype).eps
        least = {"loss": products, "gradient": products, "memory": written}
        errors = {key: relative(rounded[key], value) for key, value in self.expected.items()}
        self.plain = {key: max(error, least[key]) for key, error in errors.items()}
        granted = CUT_OFF if case.format == "float32" else 0.0
        if samples:  # K grows: the roundings of a sum of K float32 terms are a random walk
            granted += math.sqrt(case.rows) * 2.0**-24
        self.granted = {"loss": granted, "gradient": granted, "memory": 0.0}
        if case.divergence == "kl":
            # One pass has it as a sum of four terms, up to 1 / tau + ln K each, that cancel.
            terms = 2 * (1 / case.tau_s + 1 / case.tau_t + 2 * math.log(case.rows))
            self.granted["loss"] += terms * roundoff / 2 / float(self.expected["loss"])

    def check(self, step: Step) -> dict[str, float]:
        """The errors of ``step``, before its first call; more than it may is an ArithmeticError."""
        loss, grad = step(*self.batch)
        gradient = grad[..., : self.samples, :] if grad.dim() > 1 else grad
        gradient = gradient / step.loss_scale
        found = {"memory": self._written(step.as_drawn())}
        if self.case.trained:
            found["gradient"] = relative(gradient, self.expected["gradient"])
        if step.compares_loss and not self.samples:
            found["loss"] = relative(loss, self.expected["loss"])
        times = factor(self.case, step)
        limits = {key: times * self.plain[key] + self.granted[key] for key in found}
        if step.cancels:
            # ln(c / (x + c)) for each of K columns and two views: as x is much less than c, it errs
            # by the roundings of both c, of the sum and of the quotient.
            roundings = 2 * self.case.rows * 4 * torch.finfo(self.case.dtype).eps / 2
            limits["loss"] += roundings / float(self.expected["loss"])
        if not all(error <= limits[key] for key, error in found.items()):  # not if NaN
            errors = (f"{key} {found[key]:.1e}, allowed {limits[key]:.1e}" for key in found)
            raise ArithmeticError(f"{step.name} errs by {'; '.join(errors)}")
        return found

    def _written(self, state: State) -> float:
        """The error of what was written; infinite if anything else has changed."""
        elsewhere = (
            [memory.index_fill(0, self.rows, 0) for memory in pair]
            for pair in zip(self.state[:-1], state[:-1], strict=True)
        )
        same = all(torch.equal(*pair) for pair in [(state[-1], self.last), *elsewhere])
        return relative(self._changes(state), self.expected["memory"]) if same else math.inf

    def _changes(self, after: State) -> Tensor:
        """Of the written rows of each memory, [memories, B, D]."""
        pairs = zip(self.state[:-1], after[:-1], strict=True)
        changes = [new[self.rows].double() - old[self.rows].double() for old, new in pairs]
        return torch.stack(changes)

    def _plain(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Loss, gradient and changes of the memory, in plain PyTorch and in ``dtype``."""
        case, last = self.case, self.state[-1].clone()
        exact = dtype == torch.float64  # else the memory has a format of its own
        memories = [memory.to(dtype if exact else None, copy=True) for memory in self.state[:-1]]
        z_s, z_t = leaves = [z.to(dtype, copy=True) for z in self.batch[:2]]
        momentum = isinstance(case, MomentumCase)

        def write(when: str) -> None:
            if not momentum and case.enqueue == when:
                written: Any = reference.enqueue_ if dtype == torch.float64 else enqueue
                written(memories[0], last, z_t, newest_first=case.newest_first)

        write("before")
        trained = [z.requires_grad_() for z in leaves[: case.trained]]
        loss = torch.zeros((), dtype=torch.float64, device=z_s.device)
        # A few samples at a time: B×K matrices, or B×K gathered rows, would fill gigabytes.
        batch = (tensor[: self.samples] for tensor in (z_s, z_t, *self.batch[3:]))
        parts = (tensor.split(8 if momentum else 128) for tensor in batch)
        for part in zip(*parts, strict=True):
            total = _sum_of_losses(case, memories, last, *part)
            if trained:
                total.backward()
            loss += total.detach() / case.batch
        write("after")
        if isinstance(case, MomentumCase) and trained:
            for memory, z in zip(memories, leaves, strict=True):
                reference.momentum_update_(memory, self.rows, z.detach(), case.nce_m)
        grads = [z.grad[: self.samples].double() for z in trained if z.grad is not None]
        gradient = torch.stack(grads).squeeze(0) / case.batch if grads else loss.new_zeros(0)
        return {"loss": loss, "gradient": gradient, "memory": self._changes((*memories, last))}


def _sum_of_losses(case: Case, memories: list[Tensor], last: Tensor, *batch: Tensor) -> Tensor:
    z_s, z_t, *idx = batch
    taus: Any = {"tau_s": case.tau_s, "tau_t": case.tau_t, "reduction": "sum"}
    if isinstance(case, MomentumCase):
        views = (z_s, z_t, *memories, *idx, last[2:4])
        if isinstance(case, ContrastiveCase):
            return reference.sampled_contrastive_loss(*views, nce_t=case.nce_t, reduction="sum")
        return reference.sampled_relational_loss(*views, nce_t=case.nce_t, **taus)
    if isinstance(case, FamilyCase) and not case.softmax:
        # What has the products' gradient, (s M' - t M') M, or s M' M - t with the hard target.
        student, teacher = (F.normalize(z, dim=1) for z in (z_s, z_t))
        if not case.hard:
            student, teacher = student @ memories[0].T, teacher @ memories[0].T
            return (student.square() / 2 - student * teacher).sum()
        return (student @ memories[0].T).square().sum() / 2 - (student * teacher).sum()
    if z_s.dtype in (torch.float32, torch.float64):
        options: Any = {"own_pair": case.own_pair, "divergence": case.divergence}
        return reference.relational_loss(z_s, z_t, memories[0], **taus, **options)
    # The reference would multiply in float32.
    student, teacher = (F.normalize(z, dim=1) @ memories[0].T for z in (z_s, z_t))
    return reference.cross_entropy(student / case.tau_s, teacher / case.tau_t).sum()
