"""The momentum memory's kernels as compiled, executed, as test_ptx_fifo.py does the FIFO's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
import contrastive_problems
from contrastive_problems import Contrastive
from emulated import executed
from momentum_problems import Sampled, draw, views
from problems import clear_of_ties, in_float64, loaded, rounded_query
from test_ptx_fifo import (
    OMITTED,
    OPERANDS,
    ROUNDOFF,
    STORED,
    WEIGHT,
    archs,
    rows_are_right,
    stored_and_given,
    strided,
)

from rrd_kernels import reference


@dataclass(frozen=True)
class Loss:
    """One call of the sampled loss."""

    method: str
    precision: str
    dim: int
    similarity: str
    reduction: int = 1
    need_grad: bool = True
    strided: bool = False
    multiprocessors: int = 1
    stored: torch.dtype | None = None  # of the memories, if not the precision's
    batch: int = 5
    columns: int = 40
    rows: int = 150

    def __str__(self) -> str:
        words = [self.method, self.precision, f"D={self.dim}", self.similarity]
        words += [("none", "mean", "sum")[self.reduction]]
        words += ["loss-alone"] * (not self.need_grad) + ["strided"] * self.strided
        words += ["split"] * (self.multiprocessors > 1)
        words += [str(self.stored).replace("torch.", "memory-")] if self.stored else []
        return " ".join([*words, f"{self.batch}x{self.columns}"])

    @property
    def multiplied(self) -> str:
        """The products' format: rows that are gathered are multiplied in float32."""
        return self.precision if self.method == "dense" else "float32"


def problem_of(case: Loss) -> Sampled:
    dtype = STORED.get(case.precision, torch.float32)
    problem = draw(
        case.batch, case.columns, case.rows, case.dim, case.similarity, dtype,
        memory_dtype=case.stored,
    )  # fmt: skip
    for z in (problem.z_s, problem.z_t):
        clear_of_ties(z, case.multiplied, problem.tau_s, problem.tau_t, problem.nce_t)
    if case.strided:
        names = ("z_s", "z_t", "memory_v1", "memory_v2")
        return replace(problem, **{name: strided(getattr(problem, name)) for name in names})
    return problem


def exact(case: Loss, problem: Sampled) -> tuple[torch.Tensor, ...]:
    """In float64, of operands as rounded: losses and gradients, and how far off both may be.

    A weight of the gradient's sum falls either way where it is rounded, uniformly: six standard
    deviations are granted. To float32's own roundings their absolute sum, as in test_ptx_fifo.py.
    """
    precision, exponential = case.multiplied, problem.normalizers is not None
    z_s, z_t = problem.z_s.double(), problem.z_t.double()
    idx = problem.contrast_idx
    per_logit = (math.sqrt(case.dim / 8) + 2) * ROUNDOFF + OMITTED.get(precision, 0.0)

    def side(z: torch.Tensor, memory: torch.Tensor, view: int, tau: float):
        scale = math.log2(math.e) / (problem.nce_t if exponential else tau)
        query = rounded_query(F.normalize(z, dim=1) * scale, precision) * math.log(2)
        rows = loaded(memory, precision)[idx]
        logits = torch.einsum("bd,bpd->bp", query, rows)
        products = torch.einsum("bd,bpd->bp", query.abs(), rows.abs())
        off = per_logit * products + 2 * ROUNDOFF
        if exponential:
            logits = logits.exp() / problem.normalizers[view].double() / tau
            off = logits * (off + 4 * ROUNDOFF)
        return logits, off, rows

    b, off_b, rows = side(z_s, problem.memory_v2, 0, problem.tau_s)
    a, off_a, _ = side(z_t, problem.memory_v1, 1, problem.tau_t)
    q, p = b.softmax(1), a.softmax(1)
    slope = b / problem.nce_t if exponential else torch.full_like(b, 1 / problem.tau_s)
    centre = (p * b).sum(1, keepdim=True)
    loss = b.logsumexp(1) - centre[:, 0]
    grad = torch.einsum("bp,bpd->bd", (q - p) * slope, rows)

    # A sample's own sum of weights is off as the largest of its logits at most.
    off_q, off_p = (o + o.amax(1, keepdim=True) + 4 * ROUNDOFF for o in (off_b, off_a))
    loss_bound = (q * off_b + p * off_b + p * off_p * (b - centre).abs()).sum(1)
    loss_bound += 8 * ROUNDOFF * (b.logsumexp(1).abs() + b.abs().amax(1))
    length = rows.norm(dim=2)
    # Columns that name one row are one weight.
    weight = torch.zeros(case.batch, case.rows, dtype=torch.float64)
    weight = weight.scatter_add(1, idx, (q - p) * slope)
    longest = loaded(problem.memory_v2, precision).norm(dim=1)
    rounded = (weight * longest).square().sum(1).sqrt() * WEIGHT[precision] / math.sqrt(3)
    each = (q * off_q + p * off_p) * slope + ((q - p) * slope).abs() * (off_b + 4 * ROUNDOFF)
    grad_bound = 6 * rounded + (each * length).sum(1) + 8 * ROUNDOFF * grad.norm(dim=1)

    unit, norm = F.normalize(z_s, dim=1), z_s.norm(dim=1, keepdim=True)
    grad = (grad - (grad * unit).sum(1, keepdim=True) * unit) / norm
    return loss, grad, loss_bound, grad_bound / norm[:, 0]


def arguments(case: Loss, problem: Sampled) -> tuple[object, ...]:
    taus = (problem.tau_s, problem.tau_t, problem.nce_t)
    choices = (case.precision, case.reduction, case.method, case.need_grad)
    return (*views(problem), problem.normalizers, *taus, *choices)


def check(case: Loss, problem: Sampled, arch: str, **others) -> None:
    loss, grad, *_ = executed(
        "sampled_relational_loss_forward", *arguments(case, problem),
        arch=arch, multiprocessors=case.multiprocessors, **others,
    )  # fmt: skip
    wanted, wanted_grad, loss_bound, grad_bound = exact(case, problem)
    weight = 1 / case.batch if case.reduction == 1 else 1.0
    if case.reduction:
        wanted, loss_bound = wanted.sum() * weight, loss_bound.sum() * weight
    assert ((loss.double() - wanted).abs() <= loss_bound).all()
    if case.need_grad:
        error = (grad.double() - wanted_grad * weight).norm(dim=1)
        assert (error <= grad_bound * weight).all()


def losses() -> Iterator[Loss]:
    """Every method, precision and width, and the other choices in turn."""
    kinds = [("dense", precision) for precision in OPERANDS]
    kinds += [("gather", "bfloat16"), ("gather", "float32")]
    for d, dim in enumerate((32, 128, 100, 256, 1000)):
        for o, (method, precision) in enumerate(kinds):
            yield Loss(
                method,
                precision,
                dim,
                similarity=("exponential", "cosine")[(d + o) % 2],
                reduction=(d + o) % 3,
                need_grad=(d + 2 * o) % 5 != 3,
                strided=(d // 2 + o) % 2 == 1,
                multiprocessors=4 if (d + o // 2) % 3 == 0 else 1,
                rows=150 if dim < 1000 else 70,
            )
    for similarity in ("cosine", "exponential"):
        yield Loss("dense", "float32", 64, similarity, stored=torch.bfloat16)
        yield Loss("gather", "float32", 64, similarity, stored=torch.float16)
        yield Loss("dense", "bfloat16", 64, similarity, batch=70, columns=300, rows=400)
        yield Loss("gather", "float32", 128, similarity, batch=3, columns=1030, rows=1500)


def marked(case: "Loss | ContrastiveLoss") -> object:
    short = case.dim in (32, 64, 128) and case.columns < 100
    return pytest.param(case, marks=[] if short else pytest.mark.long, id=str(case))


def test_every_choice_meets_every_operand():
    names = ("similarity", "reduction", "need_grad", "strided")
    met = {(c.method, c.precision, name, getattr(c, name)) for c in losses() for name in names}
    met |= {(c.method, c.precision, "several", c.multiprocessors > 1) for c in losses()}
    kinds = {(c.method, c.precision) for c in losses()}
    assert met >= {(*kind, name, value) for kind in kinds for _, _, name, value in met}


@archs
@pytest.mark.parametrize("case", list(map(marked, losses())))
def test_losses(case, arch):
    check(case, problem_of(case), arch)


@archs
@pytest.mark.parametrize("method", ["dense", "gather"])
def test_a_column_that_is_no_row_makes_its_sample_nan(method, arch):
    case = Loss(method, "float32", 64, "exponential", reduction=0)
    problem = problem_of(case)
    problem.contrast_idx[1, 3], problem.contrast_idx[4, 0] = -1, case.rows + 7
    loss, grad, *_ = executed(
        "sampled_relational_loss_forward", *arguments(case, problem), arch=arch
    )
    assert loss.isnan().tolist() == [False, True, False, False, True]
    assert grad.isnan().all(dim=1).tolist() == [False, True, False, False, True]


@dataclass(frozen=True)
class ContrastiveLoss:
    """One call of CRD's loss."""

    method: str
    precision: str
    dim: int
    reduction: int = 1
    need_grads: tuple[bool, bool] = (True, True)
    strided: bool = False
    multiprocessors: int = 1
    stored: torch.dtype | None = None  # of the memories, if not the precision's
    batch: int = 5
    columns: int = 40
    rows: int = 150

    def __str__(self) -> str:
        words = [self.method, self.precision, f"D={self.dim}"]
        words += [("none", "mean", "sum")[self.reduction]]
        words += [side for side, need in zip("st", self.need_grads, strict=True) if need]
        words += ["strided"] * self.strided + ["split"] * (self.multiprocessors > 1)
        words += [str(self.stored).replace("torch.", "memory-")] if self.stored else []
        return " ".join([*words, f"{self.batch}x{self.columns}"])

    @property
    def multiplied(self) -> str:
        return self.precision if self.method == "dense" else "float32"


def contrastive_problem_of(case: ContrastiveLoss) -> Contrastive:
    dtype = STORED.get(case.precision, torch.float32)
    sizes = (case.batch, case.columns, case.rows, case.dim)
    problem = contrastive_problems.draw(*sizes, dtype, memory_dtype=case.stored)
    for z in (problem.z_s, problem.z_t):
        clear_of_ties(z, case.multiplied, problem.nce_t)
    if case.strided:
        names = ("z_s", "z_t", "memory_v1", "memory_v2")
        return replace(problem, **{name: strided(getattr(problem, name)) for name in names})
    return problem


def exact_view(case: ContrastiveLoss, problem: Contrastive, view: int) -> tuple[torch.Tensor, ...]:
    """In float64, of operands as rounded: a view's losses and gradients, and how far off both may
    be. The positive's operands are float32.

    A logit's products and their sum err as in exact(), and the logit by the rounding of the shift
    and of the difference. A loss and a weight then have at most sixteen roundings of their own, and
    as many from sums. Rounded weights are granted six standard deviations, as in exact().
    """
    z, memory = ((problem.z_s, problem.memory_v2), (problem.z_t, problem.memory_v1))[view]
    z, idx, precision = z.double(), problem.contrast_idx, case.multiplied
    unit, norm = F.normalize(z, dim=1), z.norm(dim=1, keepdim=True)
    negatives = case.columns - 1
    noise = negatives / case.rows + 1e-7
    shift = (problem.normalizers[view].double() * noise).log()
    scale = math.log2(math.e) / problem.nce_t

    def signed_logits(precision: str, idx: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query = rounded_query(unit * scale, precision) * math.log(2)
        rows = loaded(memory, precision)[idx]
        h = torch.einsum("bd,bpd->bp", query, rows) - shift
        per_logit = (math.sqrt(case.dim / 8) + 2) * ROUNDOFF + OMITTED.get(precision, 0.0)
        off = per_logit * torch.einsum("bd,bpd->bp", query.abs(), rows.abs())
        return h, off + 2 * ROUNDOFF * (1 + shift.abs() + h.abs()), rows

    first, others = signed_logits("float32", idx[:, :1]), signed_logits(precision, idx[:, 1:])
    h = torch.cat([-first[0], others[0]], 1)
    off, rows = (torch.cat(pair, 1) for pair in zip(first[1:], others[1:], strict=True))
    losses, weights = F.softplus(h, threshold=40), h.sigmoid()
    excess = negatives * math.log1p(1e-7 * case.rows / max(1, negatives))
    loss = losses.sum(1) + excess
    loss_bound = (weights * off.expm1()).sum(1) + 32 * ROUNDOFF * loss

    signs = torch.ones(case.columns, dtype=torch.float64).index_fill(0, torch.tensor(0), -1.0)
    grad = torch.einsum("bp,bpd->bd", weights * signs, rows) / problem.nce_t
    # Columns that name one row are one weight.
    weight = torch.zeros(case.batch, case.rows, dtype=torch.float64)
    weight = weight.scatter_add(1, idx[:, 1:], weights[:, 1:])
    longest = loaded(memory, precision).norm(dim=1)
    rounded = (weight * longest).square().sum(1).sqrt() * WEIGHT[precision] / math.sqrt(3)
    each = weights * (off.expm1() + 32 * ROUNDOFF) * rows.norm(dim=2)
    grad_bound = (6 * rounded + each.sum(1)) / problem.nce_t + 8 * ROUNDOFF * grad.norm(dim=1)
    grad = (grad - (grad * unit).sum(1, keepdim=True) * unit) / norm
    return loss, grad, loss_bound, grad_bound / norm[:, 0]


def check_contrastive(case: ContrastiveLoss, problem: Contrastive, arch: str) -> None:
    choices = (problem.nce_t, case.precision, case.reduction, case.method, *case.need_grads)
    loss, *found = executed(
        "sampled_contrastive_loss_forward", *problem.tensors, *choices,
        arch=arch, multiprocessors=case.multiprocessors,
    )  # fmt: skip
    views = [exact_view(case, problem, view) for view in range(2)]
    weight = 1 / case.batch if case.reduction == 1 else 1.0
    wanted, bound = views[0][0] + views[1][0], views[0][2] + views[1][2]
    if case.reduction:
        wanted, bound = wanted.sum() * weight, bound.sum() * weight
    assert ((loss.double() - wanted).abs() <= bound).all()
    for grad, needed, (_, exact, _, off) in zip(found, case.need_grads, views, strict=False):
        if needed:
            error = (grad.double() - exact * weight).norm(dim=1)
            assert (error <= off * weight).all()
        else:
            assert grad.shape == (0, case.dim)


def contrastive_losses() -> Iterator[ContrastiveLoss]:
    """Every method, precision and width, and the other choices in turn."""
    kinds = [("dense", precision) for precision in OPERANDS]
    kinds += [("gather", "bfloat16"), ("gather", "float32")]
    for d, dim in enumerate((32, 100, 300)):
        for k, (method, precision) in enumerate(kinds):
            yield ContrastiveLoss(
                method,
                precision,
                dim,
                reduction=(d + k) % 3,
                need_grads=((True, True), (True, False), (True, True), (False, True))[(d + k) % 4],
                strided=(d + k // 2) % 2 == 1,
                multiprocessors=1 if (d + k) % 3 else 4,
                stored=torch.float16 if (method, dim) == ("gather", 100) else None,
                rows=150 if dim < 300 else 70,
            )
    yield ContrastiveLoss("dense", "float32", 20, stored=torch.bfloat16)
    yield ContrastiveLoss("dense", "bfloat16", 32, need_grads=(False, False))
    yield ContrastiveLoss("dense", "float32", 32, columns=1)  # by gather: there is none to count
    yield ContrastiveLoss("dense", "float16", 64, batch=70, columns=300, rows=400)


@archs
@pytest.mark.parametrize("case", list(map(marked, contrastive_losses())))
def test_contrastive_losses(case, arch):
    check_contrastive(case, contrastive_problem_of(case), arch)


@archs
@pytest.mark.parametrize("kind", [("dense", "bfloat16"), ("gather", "float32")], ids=" ".join)
def test_negatives_that_are_told_apart_well(kind, arch):
    """Each adds about 1e-9: the loss of all is as exact."""
    case = ContrastiveLoss(*kind, 128, reduction=0)
    problem = replace(contrastive_problem_of(case), nce_t=0.02)
    problem.normalizers.fill_(math.exp(20.0) * case.rows / case.columns)
    problem.contrast_idx[:, 1:].remainder_(case.rows - case.batch)
    problem.contrast_idx[:, 0] = torch.arange(case.rows - case.batch, case.rows)
    for z, memory in ((problem.z_s, problem.memory_v2), (problem.z_t, problem.memory_v1)):
        clear_of_ties(z, case.multiplied, problem.nce_t)
        memory[-case.batch :] = F.normalize(z, dim=1)
    check_contrastive(case, problem, arch)


@archs
@pytest.mark.parametrize("method", ["dense", "gather"])
def test_what_makes_a_contrastive_loss_nan(method, arch):
    """A column that is no row, the positive or another; and a normalizer that is not set."""
    case = ContrastiveLoss(method, "bfloat16", 32, reduction=0)
    problem = contrastive_problem_of(case)
    problem.contrast_idx[1, 3], problem.contrast_idx[4, 0] = -1, case.rows + 7
    choices = (problem.nce_t, case.precision, case.reduction, case.method, True, True)

    def call() -> list[torch.Tensor]:
        name = "sampled_contrastive_loss_forward"
        return executed(name, *problem.tensors, *choices, arch=arch)[:3]

    loss, *grads = call()
    assert loss.isnan().tolist() == [False, True, False, False, True]
    for grad in grads:
        assert grad.isnan().all(dim=1).tolist() == [False, True, False, False, True]
        assert grad.isnan().any(dim=1).tolist() == [False, True, False, False, True]
    problem.normalizers[0] = -1.0
    loss, grad_s, _ = call()
    assert loss.isnan().all()
    assert grad_s.isnan().all()


@archs
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@stored_and_given
def test_the_update(stored, given, momentum, arch):
    """Of equal indices the last counts; of those that are no row, none."""
    memory = F.normalize(torch.randn(12, 100), dim=1).to(stored)
    rows = strided(torch.randn(7, 100).to(given))
    index = torch.tensor([3, 0, 3, 11, -1, 12, 5])
    rows[6, 5] = torch.nan
    found, *_ = executed("momentum_update_", memory, index, rows, momentum, arch=arch)
    wanted, inside = memory.clone(), torch.tensor([0, 1, 2, 3, 6])
    in_float64(reference.momentum_update_, wanted, index[inside], rows[inside], momentum)
    rows_are_right(found, wanted, given)
    assert found[3].ne(memory[3]).any()
    assert found[5].equal(memory[5])


@archs
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_the_normalizers(multiprocessors, stored, arch):
    """One that is set stays; the other is the mean over all columns, in float64."""
    problem = draw(4, 50, 150, 100, "exponential", torch.float32, memory_dtype=stored)
    for given in ([-1.0, -1.0], [-1.0, 7.5], [3.5, -1.0]):
        params = torch.tensor([9.0, *given, 9.0])
        wanted = torch.tensor(given)
        in_float64(reference.estimate_normalizers_, wanted, *views(problem), nce_t=problem.nce_t)
        found, *_ = executed(
            "estimate_normalizers_", params[1:3], *views(problem), problem.nce_t,
            arch=arch, multiprocessors=multiprocessors,
        )  # fmt: skip
        # What float32 holds of it, rounded once, and the reference's, rounded once or twice.
        torch.testing.assert_close(found, wanted, rtol=4 * ROUNDOFF, atol=0.0)
        assert found[torch.tensor(given) > 0].equal(torch.tensor([g for g in given if g > 0]))
