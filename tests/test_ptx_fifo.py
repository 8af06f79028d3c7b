"""The FIFO memory's kernels as compiled, executed in two schedules (asynchronous work early and
late, blocks in two shuffled orders), and compared with float64 of the operands as rounded."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from card import Card
from emulated import executed
from problems import FORMS, Problem, clear_of_ties, draw, in_float64
from ptx.program import PtxError

from rrd_kernels import reference
from rrd_kernels.triton.cards import FAMILIES, Hardware
from rrd_kernels.triton.fifo.launches import FifoSettings, step_launches
from rrd_kernels.triton.fifo.plan import make_plan

ARCHS = ("sm_80", "sm_90")
archs = pytest.mark.parametrize("arch", ARCHS)
#: Dtypes of a memory and of the rows that are written into it.
stored_and_given = pytest.mark.parametrize(
    ("stored", "given"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
    ids=str,
)

OPERANDS = ("bfloat16", "tf32", "float32", "float16")
ORDERS = ("before", "after", "never")
STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Step:
    """One call, and what it runs on."""

    precision: str
    dim: int
    batch: int = 5
    rows: int = 150
    order: str = "before"  # or "after", "never"
    momentum: float = 0.0
    reduction: int = 1
    promise: str = "none"  # of unit rows: or "kept", "broken"
    need_grad: bool = True
    strided: bool = False
    multiprocessors: int = 1
    stored: torch.dtype | None = None  # of the memory, if not the precision's
    newest_first: bool = False
    form: str = "cross-entropy"  # of the loss, in FORMS
    tau_t: float = 0.02  # of a form that has no other

    @property
    def terms(self) -> dict[str, Any]:
        return {"tau_t": self.tau_t} | FORMS[self.form]

    @property
    def pointer(self) -> torch.Tensor:
        """Before the step, which wraps."""
        return torch.tensor([2 if self.newest_first else self.rows - 2])

    def __str__(self) -> str:
        words = [self.precision, f"D={self.dim}", f"{self.batch}x{self.rows}", self.order]
        words += ["newest-first"] * self.newest_first
        words += [f"m={self.momentum}"] if self.momentum else []
        words += [("none", "mean", "sum")[self.reduction], f"promise-{self.promise}"]
        words += ["loss-alone"] * (not self.need_grad) + ["strided"] * self.strided
        words += ["split"] * (self.multiprocessors > 1)
        words += [str(self.stored).replace("torch.", "memory-")] if self.stored else []
        words += [self.form] if self.form != "cross-entropy" else []
        words += [f"tau_t={self.tau_t}"] if self.tau_t != 0.02 else []
        return " ".join(words)


def rows_are_right(found: torch.Tensor, wanted: torch.Tensor, given: torch.dtype) -> None:
    """One roundoff of what is stored, and those of a row: tests/test_enqueue.py."""
    half = found.dtype.itemsize == 2
    double = torch.float64 in (found.dtype, given) and not half
    eps = torch.finfo(found.dtype).eps if half else 0.0
    torch.testing.assert_close(found, wanted, rtol=eps, atol=16 * 2.0 ** (-52 if double else -23))


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same, transposed in a larger storage whose other elements are NaN."""
    rows, dim = tensor.shape
    larger = torch.full((dim + 1, 2 * rows + 1), torch.nan, dtype=tensor.dtype)
    view = larger[1:, 1::2].T
    return view.copy_(tensor)


def problem_of(step: Step) -> Problem:
    dtype = STORED.get(step.precision, torch.float32)
    problem = draw(step.batch, step.dim, step.rows, dtype, memory_dtype=step.stored, **step.terms)
    if problem.own_pair:
        problem.z_t = 0.6 * problem.z_s + 0.8 * problem.z_t  # so near that it has a share of both
    taus = (problem.tau_s, problem.tau_t)[: 2 if problem.tau_t else 1]
    for z in (problem.z_s, problem.z_t):
        clear_of_ties(z, step.precision, *taus)
    if step.promise == "broken":
        problem.memory *= 40
    if step.strided:
        tensors = map(strided, (problem.z_s, problem.z_t, problem.memory))
        problem = Problem(*tensors, **problem.terms)
    return problem


#: Unit roundoffs of weights as they are multiplied. TF32 truncates: errors lie in [0, 2^-10], which
#: is within 2^-11 of their mean.
WEIGHT = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "tf32": 2.0**-11, "float32": 0.0}
#: What a sum of truncated weights may lack; and of each of float32's products what is left out: the
#: product of the lower parts, and the rounding of each of these.
CUT = {"tf32": 2.0**-10}
OMITTED = {"float32": 3 * 2.0**-22}
ROUNDOFF = 2.0**-24


def bounds(problem: Problem, precision: str, need_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """How far losses [B] and gradient rows' norms [B] may be from float64 of the operands as
    rounded.

    Roundings fall either way: six standard deviations of their sums are granted. A weight's is
    uniform. A logit is a sum of at most D / 8 parts, each rounded; a partial sum is at most the sum
    of its products' absolute values. A weight is off, relatively, as its logit is absolutely.

    The own pair's weight is not rounded. Those beside it lack what TF32 cuts off.
    """
    rows = problem.memory.double()
    own = F.normalize(problem.z_t.double(), dim=1)
    deviation = torch.full((rows.shape[0],), WEIGHT[precision] / math.sqrt(3) * need_grad)
    cut = CUT.get(precision, 0.0) * need_grad
    hard, kl = problem.tau_t == 0, problem.divergence == "kl" and problem.tau_t != 0
    if problem.own_pair:
        deviation = torch.cat([torch.zeros(1), deviation])
    per_logit = (math.sqrt(rows.shape[1] / 8) + 2) * ROUNDOFF + OMITTED.get(precision, 0.0)

    def off_by(z: torch.Tensor, tau: float) -> torch.Tensor:
        unit = F.normalize(z.double(), dim=1)
        products = unit.abs() @ rows.abs().T
        if problem.own_pair:
            products = torch.cat([(unit * own).abs().sum(1, keepdim=True), products], 1)
        return per_logit * products / tau + 2 * ROUNDOFF

    def columns(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How far each is from their mean, and how long that is."""
        mean = problem.mean_column(weights, rows)
        spread = torch.cdist(mean, rows)
        if problem.own_pair:
            spread = torch.cat([(own - mean).norm(dim=1, keepdim=True), spread], 1)
        return spread, mean.norm(dim=1)

    b = problem.logits(F.normalize(problem.z_s.double(), dim=1), rows, problem.tau_s)
    a, p = problem.target(own, rows)
    q, term = b.softmax(1), b - a if kl else b
    off_s = off_by(problem.z_s, problem.tau_s)
    off_t = torch.zeros_like(off_s) if hard else off_by(problem.z_t, problem.tau_t)
    variance_s = deviation.square() + off_s.square()
    variance_t = torch.zeros_like(off_t) if hard else deviation.square() + off_t.square()
    (spread_s, length_s), (spread_t, length_t) = columns(q), columns(p)
    from_centre = (term - (p * term).sum(1, keepdim=True)).abs()

    square = (q * spread_s).square() * variance_s + (p * spread_t).square() * variance_t
    grad = 6 * square.sum(1).sqrt() + 8 * ROUNDOFF * (length_s + length_t)
    square = q.square() * variance_s + (p * off_s).square()
    square += (p * from_centre).square() * variance_t
    if kl:
        square += p.square() * variance_t + (p * off_t).square()
    loss = 6 * square.sum(1).sqrt() + cut
    for logits in (b, a)[: 2 if kl else 1]:
        loss += 8 * ROUNDOFF * (logits.logsumexp(1).abs() + logits.abs().amax(1))
    if problem.own_pair:
        grad += cut * (q * spread_s + p * spread_t)[:, 0]
        loss += cut * (p * from_centre)[:, 0]
    grad = grad / problem.tau_s
    return loss, grad / problem.z_s.double().norm(dim=1).clamp_min(1e-12)


def run(step: Step, problem: Problem, arch: str, **others) -> tuple[torch.Tensor, ...]:
    """Loss, gradient, the memory and the pointer after the step."""
    pointer = step.pointer
    numbers = (
        *(problem.tau_s, problem.tau_t, step.promise != "none", problem.own_pair),
        *(problem.divergence == "kl", step.precision, step.reduction),
    )
    others["multiprocessors"] = step.multiprocessors
    if step.order == "never":
        arguments = (problem.z_s, problem.z_t, problem.memory, *numbers, step.need_grad)
        found = executed("relational_loss_forward", *arguments, arch=arch, **others)
        assert found[4].equal(problem.memory) or problem.memory.isnan().any()
        return found[0], found[1], found[4], pointer
    arguments = (
        *(problem.memory, pointer, problem.z_s, problem.z_t, *numbers),
        *(step.order, step.newest_first, step.momentum, step.need_grad),
    )
    found = executed("relational_step_forward_", *arguments, arch=arch, **others)
    return found[0], found[1], found[2], found[3]


def check(step: Step, problem: Problem, arch: str, **others) -> tuple[torch.Tensor, ...]:
    """What :func:`run` returns, which is right."""
    found = loss, grad, memory, pointer = run(step, problem, arch, **others)
    wanted, moved = problem.memory.clone(), step.pointer
    if step.order != "never":
        options = {"newest_first": step.newest_first, "momentum": step.momentum}
        in_float64(reference.enqueue_, wanted, moved, problem.z_t, **options)
    rows_are_right(memory, wanted, problem.z_t.dtype)
    assert pointer.equal(moved)
    if step.order == "before":
        problem = replace(problem, memory=memory)
    holds(step, problem, loss, grad)
    return found


def holds(step: Step, problem: Problem, loss: torch.Tensor, grad: torch.Tensor) -> None:
    """Loss and gradient are as right as their roundings let them be; NaN where they must be."""
    exact, exact_grad = problem.rounded_float64(step.precision)
    loss_bound, grad_bound = bounds(problem, step.precision, step.need_grad)
    weight = 1 / step.batch if step.reduction == 1 else 1.0
    if step.reduction:
        exact, loss_bound = exact.sum() * weight, loss_bound.sum() * weight
    defined = exact.isfinite()
    assert defined.any()
    assert loss[~defined].isnan().all()
    assert ((loss.double() - exact).abs() <= loss_bound)[defined].all()
    if step.need_grad:
        defined = exact_grad.isfinite().all(dim=1)
        assert grad[~defined].isnan().any(dim=1).all()
        error = (grad.double() - exact_grad * weight).norm(dim=1)
        assert (error <= grad_bound * weight)[defined].all()
    else:
        assert grad.shape[0] == 0


def steps() -> Iterator[Step]:
    """Every precision and width, and the other choices in turn, as
    test_every_choice_meets_every_operand says."""
    for d, dim in enumerate((32, 64, 100, 128, 256, 512, 1000)):
        for o, precision in enumerate(OPERANDS):
            several = (d // 2 + o) % 2
            yield Step(
                precision,
                dim,
                rows=333 if several and dim < 1000 else 150,
                order=ORDERS[(d + o) % 3],
                momentum=(0.0, 0.5)[(d + o // 2) % 2],
                reduction=(2 * d + o) % 3,
                promise=("kept", "none", "broken")[(d + 2 * o) % 3],
                need_grad=(d + o) // 3 % 2 == 0,
                strided=(d + 3 * o) % 4 == 1,
                multiprocessors=4 if several else 1,
            )
    # More than one block of queries, and several tiles of one split, each loop more than once.
    for precision in OPERANDS:
        yield Step(precision, 128, 70, 400, promise="kept")
        yield Step(precision, 64, 70, 400, "after", need_grad=False)
    # Full tiles, which need no mask.
    yield Step("bfloat16", 128, 5, 256, "after", promise="kept", multiprocessors=2)
    yield Step("float32", 100, 5, 256, "before", reduction=0)
    # The other forms of the loss, some of them with a teacher that is nearly hard; and a ring that
    # grows downwards. Long rows, which break the promise, would leave the own pair no share.
    for (f, form), (o, precision) in itertools.product(enumerate(FORMS), enumerate(OPERANDS)):
        promises = ("kept", "none") if "own pair" in form else ("kept", "broken", "none")
        for need_grad in (True, False) if f else ():
            yield Step(
                precision,
                32,
                3,
                70,
                order=ORDERS[(f + o) % 3],
                newest_first=(f + o) % 3 < 2,
                reduction=(f + 2 * o) % 3,
                promise=promises[(f + 2 * o) // 2 % len(promises)],
                need_grad=need_grad,
                multiprocessors=1 + 2 * (o % 2),
                form=form,
                tau_t=0.02 if form == "hard target" else 1e-4 if (f + o) % 4 == 0 else 0.2,
            )
    # Rows that are wider than a program's share of the output.
    for precision in OPERANDS:
        yield Step(precision, 1040, 2, 20)
    # Products in a format that the memory is not stored in.
    yield Step("bfloat16", 64, stored=torch.float32)
    yield Step("float16", 64, stored=torch.float32, promise="kept")
    yield Step("float32", 64, stored=torch.bfloat16, order="after", momentum=0.5)
    yield Step("tf32", 64, stored=torch.float16, need_grad=False)


def on_each_card() -> Iterator[tuple[Step, str, bool]]:
    """The steps, with the cards that execute them, and whether that is a short test.

    Wide rows and large batches take longer than the rest together. The other forms of the loss are
    executed on one card each.
    """
    for step, arch in itertools.product(steps(), ARCHS):
        short = step.dim <= 128 and step.batch * step.rows < 2000
        if step.form != "cross-entropy":
            even = (list(FORMS).index(step.form) + OPERANDS.index(step.precision)) % 2 == 0
            short = arch == "sm_90"
            if short != (step.need_grad == even):
                continue
        wide = step.dim > 1024 and step.precision == "bfloat16" and arch == "sm_90"
        yield step, arch, short or wide


def test_every_choice_meets_every_operand():
    """In the short tests, and each order has a gradient and none, with every precision."""
    short = [step for step, _, short in on_each_card() if short]
    names = ("order", "momentum", "reduction", "promise", "need_grad", "strided")
    met = {(s.precision, name, getattr(s, name)) for s in steps() for name in names}
    met |= {(s.precision, "several", s.multiprocessors > 1) for s in steps()}
    assert met >= {(o, name, value) for o in OPERANDS for _, name, value in met}
    assert {(s.precision, s.order, s.need_grad) for s in steps()} == {
        *itertools.product(OPERANDS, ORDERS, (True, False))
    }
    assert {(s.precision, s.promise) for s in short} >= {
        *itertools.product(OPERANDS, ("kept", "none", "broken"))
    }
    assert {(s.precision, s.need_grad) for s in short} >= {
        *itertools.product(OPERANDS, (True, False))
    }
    assert {(s.form, s.need_grad) for s in short} == {*itertools.product(FORMS, (True, False))}
    assert {(s.form, s.precision) for s in short} == {*itertools.product(FORMS, OPERANDS)}
    assert {(s.newest_first, s.order) for s in short} >= {
        *itertools.product((True, False), ORDERS[:2])
    }
    assert {s.tau_t for s in short} == {0.02, 0.2, 1e-4}


@pytest.mark.parametrize(
    ("step", "arch"),
    [
        pytest.param(step, arch, marks=[] if short else pytest.mark.long, id=f"{step}-{arch}")
        for step, arch, short in on_each_card()
    ],
)
def test_steps(step, arch):
    check(step, problem_of(step), arch)


@archs
@pytest.mark.parametrize(
    ("precision", "order", "momentum"),
    [
        ("float32", "before", 0.5),
        ("float32", "after", 0.0),
        ("bfloat16", "after", 0.5),
        ("tf32", "before", 0.0),
        ("float16", "before", 0.5),
    ],
)
def test_rows_that_are_not_finite_zero_or_huge(precision, order, momentum, arch):
    step = Step(precision, 100, 7, 70, order, momentum, 0)
    problem = problem_of(step)
    problem.z_s[0], problem.z_t[1] = 0.0, 0.0
    problem.z_s[2] *= 1e30
    problem.z_t[3] *= 1e-35
    problem.z_t[4, 3], problem.z_t[5, 99] = torch.nan, -torch.inf
    problem.z_s[6, 0] = torch.inf
    check(step, problem, arch)


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize(
    ("form", "arch"),
    [(form, "sm_90") for form in ("cross-entropy", "hard target", "kl")] + [("kl", "sm_80")],
)
def test_partial_sums(form, need_grad, arch):
    options = {"reduction": 0, "need_grad": need_grad, "multiprocessors": 3}
    step = Step("float32", 24, 3, 150, "never", form=form, **options)
    problem = problem_of(step)
    kl = problem.divergence == "kl"
    numbers = (problem.tau_s, problem.tau_t, False, kl, step.precision, need_grad)
    sums, shifts, *_ = executed(
        "relational_partials", problem.z_s, problem.z_t, problem.memory, *numbers,
        arch=arch, multiprocessors=step.multiprocessors,
    )  # fmt: skip
    losses, grad = reference.losses_of_partials(
        problem.z_s,
        sums.double(),
        shifts.double(),
        need_grad,
        tau_s=problem.tau_s,
        tau_t=problem.tau_t,
        z_t=problem.z_t if problem.own_pair else None,
        divergence=problem.divergence,
    )
    holds(step, problem, losses, problem.z_s[:0] if grad is None else grad)


@archs
@pytest.mark.parametrize(("newest_first", "momentum"), [(True, 0.0), (False, 0.9)])
@stored_and_given
def test_the_enqueue_alone(stored, given, newest_first, momentum, arch):
    memory, keys = torch.randn(12, 100).to(stored), strided(torch.randn(7, 100).to(given))
    keys[2], keys[4, 5] = 0.0, torch.nan
    # Slots 6 to 0, or 11 to 5.
    pointer, wanted, moved = torch.tensor([-6]), memory.clone(), torch.tensor([-6])
    options = {"newest_first": newest_first, "momentum": momentum}
    found, where, _ = executed("enqueue_", memory, pointer, keys, *options.values(), arch=arch)
    in_float64(reference.enqueue_, wanted, moved, keys, **options)
    rows_are_right(found, wanted, given)
    assert where.equal(moved)


@pytest.mark.parametrize("spoilt", [None, "attend", "combine"])
def test_dependent_launches(spoilt):
    """Each may begin before its predecessor has ended, and waits before it looks at its results."""
    step = Step("bfloat16", 64, multiprocessors=4)
    problem = problem_of(step)
    settings = FifoSettings(
        problem.tau_s, problem.tau_t, False, False, False, step.precision, 1, True, step.order
    )
    plan = make_plan(step.batch, step.rows, step.dim, step.precision, 2, True, Hardware("sm_90", 4))

    def changed(name: str, ptx: str) -> str:
        assert "griddepcontrol" in ptx
        return ptx.replace("griddepcontrol.wait", "// ") if name == spoilt else ptx

    memory, pointer = problem.memory.clone(), torch.tensor([step.rows - 2])
    card = Card(changed=changed)

    def launch() -> tuple[torch.Tensor, torch.Tensor]:
        buffers, launches = step_launches(
            problem.z_s, problem.z_t, memory, pointer, settings, Hardware("sm_90", 4),
            plan._replace(dependent=True),
        )  # fmt: skip
        card.run(launches)
        return buffers.loss, buffers.grad_z_s

    if spoilt:
        with pytest.raises(PtxError, match=r"no griddepcontrol\.wait"):
            card.call(launch)
    else:
        holds(step, replace(problem, memory=memory), *card.call(launch))


#: Families whose tables are neither those of sm_80 nor those of sm_90, which are emulated.
NOT_EMULATED = [
    name
    for name, family in FAMILIES.items()
    if family not in (FAMILIES["sm_80"], FAMILIES["sm_90"])
]


@pytest.mark.parametrize(
    "step", [Step("bfloat16", 64), Step("float32", 32, order="after")], ids=str
)
@pytest.mark.parametrize("family", NOT_EMULATED)
def test_plans_of_cards_that_are_not_emulated(family, step):
    """Their block sizes, and how they multiply, on a card that is emulated."""
    arch = "sm_90" if family.startswith("sm_") else "sm_80"
    check(step, problem_of(step), arch, family=family)
