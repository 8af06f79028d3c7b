"""Sizes, dtypes and temperatures against float64, within derived bounds."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from emulated import EMULATED
from problems import FORMS, Problem, draw, rounding_of, runs_triton, tolerance

from rrd_kernels.functional import enqueue_, relational_loss, relational_partials

HAS_BFLOAT16 = torch.ops.rrd_kernels.cpu_kernels()[2].endswith("_bf16")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALF = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def products(problem: Problem) -> str:
    """The products' format, by the documented rule and what this machine has."""
    dtypes = {problem.z_s.dtype, problem.z_t.dtype, problem.memory.dtype}
    if torch.float64 in dtypes:
        return "float64"
    if runs_triton(problem.z_s.device):
        half = problem.z_s.shape[1] <= 4096
        return HALF.get(problem.z_s.dtype, "float32") if half and len(dtypes) == 1 else "float32"
    return "bfloat16" if dtypes == {torch.bfloat16} and HAS_BFLOAT16 else "float32"


def far_off(problem: Problem, loss: torch.Tensor, grad: torch.Tensor) -> bool:
    """Whether a loss or a gradient's row is further from float64 than its bound."""
    precision = products(problem)
    half = precision in HALF.values()
    exact = problem.rounded_float64(precision) if half else problem.float64()
    loss_bound, grad_bound = tolerance(problem, precision)
    within_loss = (loss.double() - exact[0]).abs() <= loss_bound
    within_grad = (grad.double() - exact[1]).norm(dim=1) <= grad_bound
    return not (within_loss.all() and within_grad.all())  # a NaN is far off


def compute(
    problem: Problem, precision: str | None = None, **options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradients, from z_s in the products' own precision: in z_s's, the gradient would
    be rounded once more."""
    precision = precision or products(problem)
    z_s = problem.z_s.to(torch.float64 if precision == "float64" else torch.float32)
    z_s = z_s.detach().requires_grad_()
    loss = relational_loss(
        z_s,
        problem.z_t,
        problem.memory,
        reduction="none",
        precision=precision,
        **problem.terms,
        **options,
    )
    (grad,) = torch.autograd.grad(loss.sum(), z_s)
    return loss.detach(), grad


def check(problem: Problem, **options) -> None:
    loss, grad = compute(problem, **options)
    assert not far_off(problem, loss, grad)
    alone = relational_loss(  # as it comes: default precision, own dtypes, no gradient
        problem.z_s,
        problem.z_t,
        problem.memory,
        reduction="none",
        **problem.terms,
        **options,
    )
    assert not far_off(problem, alone, grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unit_memory_beyond_the_bounded_range_falls_back(dtype, device):
    # log2(e) / 0.005 = 289: 2^289 does not exist in float32.
    check(draw(8, 16, 200, dtype, device, tau_s=0.005, tau_t=0.005), unit_memory=True)


SIZES = [
    (252, 123, 507),
    (5, 1000, 12),  # wide and short: on a GPU one split, of programs that share a query
    (64, 128, 16384),
    (1, 1, 1),
    (129, 1030, 97),
    (3, 128, 2049),
    (40, 64, 545),
    (20, 200, 150),
    (5, 1000, 70),
    (6, 2080, 100),  # so wide that a tile of the memory is one step of the matrix unit
    (5, 4096, 65),
]
if EMULATED:
    # A few hundred rows are several tiles.
    SIZES = [s for s in SIZES if s[1] <= 1024 and s[2] <= 600 and s[0] * s[2] <= 8000]


@pytest.mark.parametrize("unit_memory", [False, True])
@pytest.mark.parametrize(("batch", "dim", "rows"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(batch, dim, rows, dtype, unit_memory, device):
    check(draw(batch, dim, rows, dtype, device), unit_memory=unit_memory)


@pytest.mark.parametrize("unit_memory", [False, True])
@pytest.mark.parametrize(("batch", "dim", "rows"), SIZES[::4] + SIZES[-1:], ids=str)
@pytest.mark.parametrize("form", list(FORMS)[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forms(dtype, form, batch, dim, rows, unit_memory, device):
    check(draw(batch, dim, rows, dtype, device, **FORMS[form]), unit_memory=unit_memory)


@pytest.mark.parametrize("form", ["own pair", "own pair, kl"])
@pytest.mark.parametrize("tau_t", [1e-4, 1e-3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cold_teacher(dtype, tau_t, form, device):
    """SEED's temperature: no weight of the memory's is representable beside the own pair's, unless
    a row is all but the teacher's own, as every second is here."""
    problem = draw(40, 32, 80, dtype, device, tau_s=0.2, **FORMS[form] | {"tau_t": tau_t})
    near = F.normalize(problem.z_t.double() + 0.02 * torch.randn_like(problem.z_t.double()), dim=1)
    problem.memory[::2] = near.to(dtype)
    check(problem, unit_memory=True)


@pytest.mark.parametrize("tau", [0.04, 0.07])
@pytest.mark.parametrize("own_pair", [False, True])
def test_kl_of_a_student_that_is_all_but_the_teacher(own_pair, tau, device):
    """What is left of four terms that cancel errs by the rounding of the logits alone: twice that
    of a query of length 1 / tau."""
    problem = draw(64, 128, 512, device=device, tau_s=tau, tau_t=tau, own_pair=own_pair)
    problem.divergence = "kl"
    problem.z_s = problem.z_t + 1e-3 * torch.randn_like(problem.z_t)
    allowed = 2 * rounding_of("float32", device).operand / tau
    for promised in (True, False):
        loss, _ = compute(problem, unit_memory=promised)
        assert (loss.double() - problem.float64()[0]).abs().max() <= allowed


@pytest.mark.parametrize("tau", [0.014, 0.1, 10.0])
@pytest.mark.parametrize(("batch", "dim", "rows"), [s for s in SIZES if s[0] > 1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_true_promise_needs_no_second_pass(dtype, batch, dim, rows, tau, device):
    """The passes round differently; equal bits would mean that the bounded one was thrown away,
    and that its mistakes cannot show in any other test."""
    if runs_triton(device) and (dtype == torch.float64 or dim > 4096):
        pytest.skip("no kernels there: plain PyTorch")
    problem = draw(batch, dim, rows, dtype, device, tau_s=tau, tau_t=tau)
    results = [compute(problem, unit_memory=promised) for promised in (True, False)]
    assert not torch.equal(results[0][1], results[1][1])


def eager(problem: Problem, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss as eager code under autocast computes it: products and logits in ``dtype``."""
    z_s = problem.z_s.detach().float().requires_grad_()
    student = F.normalize(z_s, dim=1).to(dtype)
    teacher = F.normalize(problem.z_t.float(), dim=1).to(dtype)
    rows = problem.memory.to(dtype)
    p = (teacher @ rows.T / problem.tau_t).softmax(1)
    loss = -(p * (student @ rows.T / problem.tau_s).log_softmax(1)).sum(1)
    (grad,) = torch.autograd.grad(loss.sum(), z_s)
    return loss.detach(), grad


def errors(problem: Problem, found: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    """Of all losses and of the whole gradient, relative, in the Frobenius norm."""
    pairs = zip(found, problem.float64(), strict=True)
    return [((value - wanted).norm() / wanted.norm()).item() for value, wanted in pairs]


def as_accurate_as_eager(problem, dtype, found) -> bool:
    """Of the same precision, in loss and gradient. Both err by many roundings that fall either way:
    the factor 2 covers the draw. In float32 they round alike; in bfloat16 eager also rounds the
    logits, and errs more. A few roundoffs of float32 are granted to sums in another order."""
    granted = 32 * 2.0**-24
    theirs = errors(problem, eager(problem, dtype))
    pairs = zip(errors(problem, found), theirs, strict=True)
    return all(error <= 2 * their + granted for error, their in pairs)


@pytest.mark.parametrize("tau_t", [0.02, 0.1])
@pytest.mark.parametrize("unit_memory", [False, True])
@pytest.mark.parametrize(("batch", "dim", "rows"), [size for size in SIZES if size[0] > 1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_less_accurate_than_eager(dtype, batch, dim, rows, unit_memory, tau_t, device):
    problem = draw(batch, dim, rows, dtype, device, tau_t=tau_t)
    found = compute(problem, unit_memory=unit_memory)
    assert as_accurate_as_eager(problem, dtype, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mistake", ["last row", "temperature", "gradient", "loss"])
@pytest.mark.parametrize("form", ["cross-entropy", "own pair", "hard target", "kl"])
def test_the_bounds_see_small_mistakes(form, mistake, dtype, device):
    if (form, mistake, dtype) == ("kl", "last row", torch.bfloat16):
        pytest.skip("less than what the teacher's larger logits are rounded by")
    problem = draw(252, 123, 507, dtype, device, **FORMS[form])
    wrong = dataclasses.replace(problem)
    if mistake == "last row":
        wrong.memory = problem.memory[:-1]
    if mistake == "temperature":
        # Beside its own pair a teacher's temperature hardly counts.
        name = "tau_s" if problem.own_pair else "tau_t"
        setattr(wrong, name, 1.05 * getattr(problem, name))
    loss, grad = compute(wrong)
    if mistake == "gradient":
        grad = 1.02 * grad
    if mistake == "loss":
        loss = 1.02 * loss
    assert far_off(problem, loss, grad)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("length", [2.0, 40.0])
@pytest.mark.parametrize("within", [None, "z_s", "z_t"])
def test_a_broken_promise_of_unit_rows_costs_time_only(within, length, precision, device):
    """Rows all alike, or all opposed: each logit is far above, or below, what a unit row allows;
    but for those of one side, which may be orthogonal to all rows."""
    row = F.normalize(torch.randn(1, 32, dtype=torch.float64), dim=1)
    problem = Problem(row.repeat(6, 1), row.repeat(6, 1), length * row.repeat(100, 1))
    problem.z_s[::2] *= -1
    problem.z_t[1::2] *= -1
    if within:
        other = torch.randn(6, 32, dtype=torch.float64)
        setattr(problem, within, other - (other @ row.T) * row)
    for part in ("z_s", "z_t", "memory"):
        value = getattr(problem, part).to(device, torch.float32)
        setattr(problem, part, value if precision != "float64" else value.double())
    options = {"tau_t": 0.02, "tau_s": 0.02, "reduction": "none", "precision": precision}
    arguments = (problem.z_s, problem.z_t, problem.memory)
    for need_grad in (True, False):
        z_s = problem.z_s.detach().requires_grad_(need_grad)
        promised = relational_loss(z_s, *arguments[1:], unit_memory=True, **options)
        honest = relational_loss(z_s, *arguments[1:], unit_memory=False, **options)
        assert torch.equal(promised, honest)
        assert promised.isfinite().all()


@pytest.mark.parametrize("rows", [48, 53])
@pytest.mark.parametrize("dim", [24, 100])
@pytest.mark.parametrize("unit_memory", [False, True])
def test_tf32(unit_memory, dim, rows, device):
    """Which a CPU computes in float32; on Hopper its second product takes the rows in an order of
    its own."""
    problem = draw(5, dim, rows, device=device)
    found = compute(problem, "tf32", unit_memory=unit_memory)
    bounds = tolerance(problem, "tf32" if runs_triton(device) else "float32")
    for value, exact, bound in zip(found, problem.float64(), bounds, strict=True):
        error = (value.double() - exact).abs()
        assert ((error if error.dim() == 1 else error.norm(dim=1)) <= bound).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bounded_path_at_the_edge_of_its_range(precision, device):
    """All rows alike, every logit at the bound: the loss is ln K, whatever the sums on the way."""
    row = F.normalize(torch.randn(1, 32, device=device), dim=1)
    rows = 1 << 11 if EMULATED else 1 << 18
    memory = row.expand(rows, 32)
    for tau in (0.0123, 0.0136, 0.0155, 0.02):
        for need_grad in (True, False):
            z_s = row.repeat(3, 1).requires_grad_(need_grad)
            loss = relational_loss(
                z_s,
                row.repeat(3, 1),
                memory,
                tau_s=tau,
                tau_t=tau,
                unit_memory=True,
                precision=precision,
            )
            # The roundings of sums are all alike here, and act on logits of 1 / tau.
            rounding = rounding_of(precision, device)
            bound = rounding.probability + (8 * rounding.sum + rounding.summing(rows)) / tau
            assert abs(loss.item() - math.log(rows)) <= bound


@pytest.mark.parametrize("unit_memory", [False, True])
def test_sums_over_many_rows_keep_their_digits(unit_memory, device):
    """All rows alike, for so many samples that a CPU divides them and not the rows: the loss is
    ln K and its gradient zero, but for the roundings of sums, which here are much alike."""
    batch, rows, tau = (16, 1 << 9, 0.1) if EMULATED else (512, 1 << 18, 0.1)
    memory = F.normalize(torch.randn(1, 16, device=device), dim=1).expand(rows, 16)
    z_s, z_t = torch.randn(2, batch, 16, device=device)
    rounding = rounding_of("float32", device)
    summing = 8 * rounding.sum + rounding.summing(rows)
    for need_grad in (True, False):
        z_s.requires_grad_(need_grad)
        loss = relational_loss(
            z_s,
            z_t,
            memory,
            tau_s=tau,
            tau_t=tau,
            reduction="none",
            unit_memory=unit_memory,
            precision="float32",
        )
        assert ((loss - math.log(rows)).abs() <= rounding.probability + summing / tau).all()
        if need_grad:
            (grad,) = torch.autograd.grad(loss.sum(), z_s)
            assert (grad.norm(dim=1) * z_s.norm(dim=1) <= 2 * summing / tau).all()


@pytest.mark.skipif(EMULATED, reason="for the CPU's kernels")
@pytest.mark.parametrize("element", torch.linspace(0.011, 0.0155, 10).tolist())
def test_sums_over_many_columns_keep_their_digits(element):
    """4096 products that are all alike, with a query whose norm is exact: the roundings of one sum
    would be alike too, and add up. It begins anew every 128 columns."""
    ones, memory = torch.ones(1, 4096), torch.full((1, 4096), element)
    # Not bounded, the one row's logits are the shifts, in units of log2.
    _, shifts = relational_partials(ones, ones, memory, tau_s=1.0, tau_t=1.0)
    exact = 64 * memory[0, 0].double() / math.log(2)
    bound = (128 + 4096 / 128 + 4) * rounding_of("float32", ones.device).sum
    assert ((shifts.double() / exact - 1).abs() <= bound).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tau", [0.01231, 0.0134])
def test_nothing_is_lost_where_all_weights_are_tiny(tau, precision, device):
    """The student's one weight is 2^-(1.44 / tau), its products with most elements are subnormal;
    the outputs of student and teacher must still be the same row."""
    row = torch.full((1, 1000), 0.0005)
    row[0, 0] = 1.0
    dtype = getattr(torch, precision)
    row = row.to(device, dtype)
    problem = Problem(-row, row, row, tau_s=tau, tau_t=tau)
    z_s = problem.z_s.float().requires_grad_()
    loss = relational_loss(
        z_s,
        problem.z_t,
        problem.memory,
        tau_s=tau,
        tau_t=tau,
        reduction="none",
        unit_memory=True,
        precision=precision,
    )
    (grad,) = torch.autograd.grad(loss.sum(), z_s)
    half = precision == "bfloat16"
    exact = (problem.rounded_float64(precision) if half else problem.float64())[1]
    assert ((grad.double() - exact).norm(dim=1) <= tolerance(problem, precision)[1]).all()


@pytest.mark.skipif(EMULATED, reason="the emulator keeps notes of whole storages")
def test_offsets_beyond_two_to_the_31(tmp_path, device):
    """Rows seven million elements apart; on a CPU in a file with nothing else in it."""
    size = (1 << 31) + (1 << 21)
    if device.type == "cuda":
        # And as much again, for what else the test has and other processes take meanwhile.
        if torch.cuda.mem_get_info(device)[0] < 4 * size:
            pytest.skip("not enough memory is free")
        flat = torch.empty(size, dtype=torch.bfloat16, device=device)
    else:
        path = tmp_path / "sparse"
        with open(path, "wb") as file:
            file.truncate(2 * size)
        flat = torch.from_file(str(path), shared=True, size=size, dtype=torch.bfloat16)
    problem = draw(5, 40, 300, torch.bfloat16, device)
    memory = flat.as_strided((300, 40), ((size - 64) // 300, 1))
    memory.copy_(problem.memory)
    for precision in ("bfloat16", "float32", "float64"):
        far, near = (
            relational_loss(problem.z_s, problem.z_t, rows, precision=precision)
            for rows in (memory, problem.memory)
        )
        assert torch.equal(far, near)
    ptr, near_ptr = (torch.tensor([297], device=device) for _ in range(2))
    enqueue_(memory, ptr, problem.z_t)
    enqueue_(problem.memory, near_ptr, problem.z_t)
    assert torch.equal(memory, problem.memory)
    assert torch.equal(ptr, near_ptr)


@pytest.mark.parametrize(
    ("precision", "bound"),
    [
        ("float64", 8 * 2.0**-53),
        ("float32", 8 * 2.0**-24),
        ("bfloat16", 7.5e-5 + 8 * 2.0**-24),
    ],
)
def test_exponential_alone(precision, bound):
    """With one row in the memory the loss, LSE(b) - b, is the relative error of exp2 and a few
    roundings: of the logit (at most 1.5 here), of the result and of the logarithm."""
    unit = torch.ones(1, 1, dtype=torch.float64)
    for value in torch.linspace(-1, 1, 301, dtype=torch.bfloat16).tolist():
        memory = torch.full((1, 1), value, dtype=torch.float64)
        loss = relational_loss(
            unit, unit, memory, tau_s=1.0, tau_t=1.0, unit_memory=True, precision=precision
        )
        # The query itself, log2(e), is rounded to bfloat16 on both sides of the difference.
        assert abs(loss.item()) <= bound
