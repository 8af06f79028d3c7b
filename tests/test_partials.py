"""Sums over parts of a memory make the loss of the whole."""

import pytest
import torch
from emulated import EMULATED
from problems import FORMS, ROUNDING, draw, error_bound
from test_properties import DTYPES, far_off, products

from rrd_kernels import reference
from rrd_kernels.functional import loss_of_partials, relational_loss, relational_partials

SIZES = [(5, 16, [7, 1, 40]), (70, 33, [600, 1100, 3]), (1, 1, [1, 1]), (40, 130, [70, 64])]
NAMES = list(FORMS)
if EMULATED:  # where the own pair has no kernel: it is added to the sums
    SIZES = [size for size in SIZES if size[0] < 40]
    NAMES = ["cross-entropy", "hard target", "kl"]


def merged(problem, sizes, *, bounded=False, need_grad=True, backend="auto"):
    """Sums over consecutive parts of the memory, brought to one shift and added."""
    options = {"unit_memory": bounded, "precision": products(problem), "backend": backend}
    options |= {name: problem.terms[name] for name in ("tau_s", "tau_t", "divergence")}
    parts = [
        relational_partials(problem.z_s, problem.z_t, rows, need_grad=need_grad, **options)
        for rows in problem.memory.split(sizes)
    ]
    common = torch.stack([shifts for _, shifts in parts]).amax(0)
    total = torch.zeros_like(parts[0][0])
    for sums, shifts in parts:
        student, *teacher = torch.exp2(shifts - common).split(1, dim=1)
        dim = problem.z_s.shape[1] if need_grad else 0
        factors = [student] + 2 * teacher + [student] * dim + teacher * dim
        total += sums * torch.cat(factors, 1)
    return total, common


def finished(problem, sums, shifts, **options):
    """Losses and gradients."""
    z_s = problem.z_s.detach().to(sums.dtype).requires_grad_()
    options |= {"z_t": problem.z_t, "reduction": "none", **problem.terms}
    losses = loss_of_partials(z_s, sums, shifts, **options)
    grad = torch.zeros_like(z_s)
    if losses.requires_grad:
        (grad,) = torch.autograd.grad(losses.sum(), z_s)
    return losses.detach(), grad


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize(("batch", "dim", "sizes"), SIZES, ids=str)
def test_parts_make_the_whole(batch, dim, sizes, form, dtype, bounded, device):
    problem = draw(batch, dim, sum(sizes), dtype, device, **FORMS[form])
    losses, grad = finished(problem, *merged(problem, sizes, bounded=bounded))
    assert not far_off(problem, losses, grad)
    alone, nothing = finished(problem, *merged(problem, sizes, bounded=bounded, need_grad=False))
    assert not far_off(problem, alone, grad)
    assert nothing.sum() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_reference_s_parts_make_the_whole(dtype, form, device):
    problem = draw(5, 16, 48, dtype, device, **FORMS[form])
    losses, grad = finished(problem, *merged(problem, [7, 1, 40], backend="reference"))
    exact = problem.float64()
    name = "float64" if dtype == torch.float64 else "float32"
    allowed = [
        a + b
        for a, b in zip(
            *(error_bound(problem, ROUNDING[n]) for n in (name, "float64")), strict=True
        )
    ]
    assert ((losses.double() - exact[0]).abs() <= allowed[0]).all()
    assert ((grad.double() - exact[1]).norm(dim=1) <= allowed[1]).all()


def test_bounded_sums_have_no_shift(device):
    problem = draw(5, 16, 48, device=device)
    _, shifts = relational_partials(problem.z_s, problem.z_t, problem.memory, unit_memory=True)
    assert (shifts == 0).all()
    _, shifts = relational_partials(problem.z_s, problem.z_t, problem.memory)
    assert (shifts != 0).all()


def test_a_broken_promise_has_shifts(device):
    """Rows a hundred times too long, whose sums float32 does not hold without them."""
    problem = draw(5, 16, 48, device=device)
    problem.memory *= 100
    sums, shifts = relational_partials(problem.z_s, problem.z_t, problem.memory, unit_memory=True)
    losses, grad = finished(problem, sums, shifts)
    assert not far_off(problem, losses, grad)


def test_gradients_scale_and_do_not_differentiate_twice(device):
    problem = draw(5, 16, 48, device=device)
    sums, shifts = merged(problem, [48])
    z_s = problem.z_s.clone().requires_grad_()
    loss = loss_of_partials(z_s, sums, shifts)
    (grad,) = torch.autograd.grad(loss, z_s, retain_graph=True)
    (triple,) = torch.autograd.grad(3 * loss, z_s, create_graph=True)
    torch.testing.assert_close(triple, 3 * grad)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        (triple.sum() + z_s.square().sum()).backward()
    wanted = relational_loss(z_s, problem.z_t, problem.memory)
    torch.testing.assert_close(loss, wanted)
    assert not loss_of_partials(z_s, sums[:, :3], shifts).requires_grad


def test_dtypes_and_an_empty_batch(device):
    z_s, z_t, memory = (torch.randn(n, 8, device=device) for n in (0, 0, 16))
    sums, shifts = relational_partials(z_s, z_t, memory)
    assert (sums.shape, shifts.shape) == ((0, 19), (0, 2))
    z_s.requires_grad_()
    loss = loss_of_partials(z_s, sums, shifts)
    loss.backward()
    assert loss == 0
    z = torch.randn(4, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
    sums, shifts = relational_partials(z, z, memory, precision="float64")
    assert sums.dtype == shifts.dtype == torch.float64
    loss_of_partials(z, sums, shifts).backward()
    assert z.grad.dtype == torch.bfloat16
    assert not sums.requires_grad


def test_bad_input():
    problem = draw(5, 16, 48)
    with pytest.raises(ValueError, match="same width D"):
        relational_partials(problem.z_s, problem.z_t, problem.memory[:, :9])
    with pytest.raises(ValueError, match="tau_t must be positive"):
        relational_partials(problem.z_s, problem.z_t, problem.memory, tau_t=-0.1)
    sums, shifts = reference.relational_partials(problem.z_s, problem.z_t, problem.memory)
    for bad in ((sums[:, :9], shifts), (sums, shifts[:, :1]), (sums[:4], shifts)):
        with pytest.raises(ValueError, match="sums and shifts must be"):
            loss_of_partials(problem.z_s, *bad)
    hard = {"tau_t": 0.0, "own_pair": True}
    with pytest.raises(ValueError, match=r"must be \[5, 1 or 17\] and \[5, 1\]"):
        loss_of_partials(problem.z_s, sums, shifts, z_t=problem.z_t, **hard)
    with pytest.raises(TypeError, match="z_t must be a Tensor"):
        loss_of_partials(problem.z_s, sums, shifts, own_pair=True)
    with pytest.raises(ValueError, match="needs own_pair=True"):
        loss_of_partials(problem.z_s, sums, shifts, tau_t=0.0)
    with pytest.raises(ValueError, match="reduction"):
        loss_of_partials(problem.z_s, sums, shifts, reduction="max")
    for shape in ((5, 8), (4, 8)):
        with pytest.raises(ValueError, match="do not fit"):
            torch.ops.rrd_kernels.relational_partials(
                *(torch.ones(5, 8), torch.ones(4, 8), torch.ones(shape)),
                *(0.1, 0.1, False, False, None, True),
            )


@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("tau_t", [0.02, 0.0])
@pytest.mark.parametrize("need_grad", [True, False])
def test_the_operator_is_well_formed(need_grad, tau_t, kl, device):
    problem = draw(5, 16, 48, device=device)
    torch.library.opcheck(
        torch.ops.rrd_kernels.relational_partials.default,
        (problem.z_s, problem.z_t, problem.memory, 0.1, tau_t, True, kl, None, need_grad),
    )
