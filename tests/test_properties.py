"""Any shape, stride, dtype and temperature against float64, within derived bounds."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, draw, tolerance

from rrd_kernels.functional import relational_loss

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def lay_out(rows: torch.Tensor, how: str) -> torch.Tensor:
    """The same matrix in other strides."""
    if how == "transposed":
        return rows.T.contiguous().T
    if how == "strided":
        wide = torch.full((2 * rows.shape[0], rows.shape[1] + 3), torch.nan, dtype=rows.dtype)
        wide[::2, :-3] = rows
        return wide[::2, :-3]
    if how == "expanded":
        return rows[:1].expand_as(rows)
    return rows


def products(problem: Problem) -> str:
    """The products' format on a CPU with every instruction set, by the documented rule."""
    dtypes = {problem.z_s.dtype, problem.z_t.dtype, problem.memory.dtype}
    if torch.float64 in dtypes:
        return "float64"
    return "bfloat16" if dtypes == {torch.bfloat16} else "float32"


def check(problem: Problem, **options) -> None:
    wanted_loss, wanted_grad = problem.float64()
    loss_bound, grad_bound = tolerance(problem, products(problem))
    z_s = problem.z_s.detach().requires_grad_()
    settings_ = {"tau_s": problem.tau_s, "tau_t": problem.tau_t, "reduction": "none"} | options
    loss = relational_loss(z_s, problem.z_t, problem.memory, **settings_)
    # In the loss's own precision: z_s's would round the gradient once more.
    wide = z_s.detach().to(loss.dtype).requires_grad_()
    precision = None if products(problem) == "float32" else products(problem)
    wide_loss = relational_loss(wide, problem.z_t, problem.memory, precision=precision, **settings_)
    (grad,) = torch.autograd.grad(wide_loss.sum(), wide)
    with torch.no_grad():
        alone = relational_loss(z_s, problem.z_t, problem.memory, **settings_)
    for value in (loss, alone):
        assert ((value.double() - wanted_loss).abs() <= loss_bound).all()
    assert ((grad.double() - wanted_grad).norm(dim=1) <= grad_bound).all()


temperature = st.floats(0.02, 2.0)


@settings(deadline=None)
@given(
    batch=st.integers(1, 70),
    dim=st.integers(1, 150),
    rows=st.integers(1, 400),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    layouts=st.tuples(*[st.sampled_from(["plain", "transposed", "strided", "expanded"])] * 3),
    tau_s=temperature,
    tau_t=temperature,
    bounded=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_matches_float64(batch, dim, rows, dtypes, layouts, tau_s, tau_t, bounded, seed):
    torch.manual_seed(seed)
    problem = draw(batch, dim, rows, torch.float64, tau_s=tau_s, tau_t=tau_t)
    for name, dtype, how in zip(("z_s", "z_t", "memory"), dtypes, layouts, strict=True):
        setattr(problem, name, lay_out(getattr(problem, name).to(dtype), how))
    check(problem, unit_memory=bounded)


@settings(deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    scale=st.floats(0.01, 50.0),
    tau=st.floats(0.002, 0.02),
    seed=st.integers(0, 2**31),
)
def test_online_softmax_takes_any_memory_and_small_temperatures(dtype, scale, tau, seed):
    torch.manual_seed(seed)
    problem = draw(9, 20, 300, torch.float64, tau_s=10 * tau, tau_t=tau)
    problem.memory *= scale * torch.rand(300, 1, dtype=torch.float64)
    for name in ("z_s", "z_t", "memory"):
        setattr(problem, name, getattr(problem, name).to(dtype))
    check(problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unit_memory_beyond_the_bounded_range_falls_back(dtype):
    # log2(e) / 0.005 = 289: 2^289 does not exist in float32.
    check(draw(8, 16, 200, dtype, tau_s=0.005, tau_t=0.005), unit_memory=True)


@pytest.mark.parametrize(
    ("batch", "dim", "rows"),
    [(252, 123, 507), (64, 128, 16384), (1, 1, 1), (129, 1030, 97), (3, 128, 2049)],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(batch, dim, rows, dtype, device):
    check(draw(batch, dim, rows, dtype, device))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tau_t", [0.02, 0.1])
def test_no_less_accurate_than_eager_of_the_same_precision(dtype, tau_t, device):
    """Errors are medians of rows, so that one lucky row does not decide; the factor 2 covers their
    spread over 256 rows, and the order of sums, in which neither is better."""
    problem = draw(256, 128, 4096, dtype, device, tau_t=tau_t)
    wanted_loss, wanted_grad = problem.float64()

    def errors(loss, grad):
        return (
            (loss.double() - wanted_loss).abs().median(),
            (grad.double() - wanted_grad).norm(dim=1).median(),
        )

    z_s = problem.z_s.float().requires_grad_()
    loss = relational_loss(
        z_s,
        problem.z_t,
        problem.memory,
        tau_t=tau_t,
        reduction="none",
        precision=str(dtype).removeprefix("torch."),
    )
    (grad,) = torch.autograd.grad(loss.sum(), z_s)
    ours, theirs = errors(loss, grad), errors(*eager(problem, dtype))
    assert ours[0] <= 2 * theirs[0]
    assert ours[1] <= 2 * theirs[1]


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
