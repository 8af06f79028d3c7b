"""sampled_relational_loss: right by both methods, in every precision, whatever it is given."""

import dataclasses

import pytest
import torch
from emulated import EMULATED
from momentum_problems import METHODS, SIMILARITIES, draw, views, within
from problems import rounding_of, runs_triton

from rrd_kernels import reference
from rrd_kernels.functional import (
    estimate_normalizers_,
    momentum_update_,
    sampled_relational_loss,
)

PRECISION = {torch.float64: "float64", torch.float32: "float32"}
# B, P, n_data, D
SIZES = [
    (1, 1, 1, 1),
    (5, 7, 13, 20),
    (3, 1, 9, 8),
    (6, 40, 300, 130),
    (2, 33, 17, 300),
    (2, 20, 30, 1000),
    (3, 20, 30, 1030),
    (33, 257, 70, 64),
    (8, 1025, 5000, 128),
]
if EMULATED:
    SIZES = [size for size in SIZES if size[0] * size[2] <= 3000]

method = pytest.mark.parametrize("method", METHODS)
similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


@method
@similarity
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_against_float64(dtype, size, similarity, method, device):
    problem = draw(*size, similarity, dtype, device)
    assert within(problem, problem.results(method=method), PRECISION[dtype])


@method
@similarity
@pytest.mark.parametrize("mistake", ["views", "column", "tau_s", "tau_t", "normalizer", "nce_t"])
def test_the_bounds_see_small_mistakes(mistake, similarity, method, device):
    problem = draw(6, 40, 300, 24, similarity, device=device)
    wrong = dataclasses.replace(problem)
    if mistake == "views":
        wrong.memory_v1, wrong.memory_v2 = problem.memory_v2, problem.memory_v1
    elif mistake == "column":
        wrong.contrast_idx = problem.contrast_idx[:, :-1]
    elif similarity == "cosine" and mistake in ("normalizer", "nce_t"):
        pytest.skip("not used")
    elif mistake == "normalizer":
        wrong.normalizers = problem.normalizers.flip(0)
    else:
        setattr(wrong, mistake, getattr(problem, mistake) * 1.01)
    assert within(problem, problem.results(method=method), "float32")
    assert not within(problem, wrong.results(method=method), "float32")


@method
@similarity
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_memory_of_another_dtype(stored, similarity, method, device):
    problem = draw(5, 30, 50, 24, similarity, torch.float32, device, memory_dtype=stored)
    precision = "float64" if stored == torch.float64 else "float32"
    loss, grad = problem.results(method=method)
    assert (loss.dtype, grad.dtype) == (
        torch.float64 if stored == torch.float64 else torch.float32,
        torch.float32,
    )
    leaf = problem.z_s.double()
    found = dataclasses.replace(problem, z_s=leaf).results(method=method, precision=precision)
    assert within(problem, found, precision)


@method
@similarity
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype, similarity, method, device):
    """On a CPU these are computed in float32; a GPU multiplies them as they are."""
    problem = draw(5, 30, 50, 24, similarity, dtype, device)
    loss, grad = problem.results(method=method)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    if runs_triton(device):
        rounding = rounding_of(str(dtype).removeprefix("torch."), device)
        # Queries are rounded to the operands' format too.
        rounding = dataclasses.replace(rounding, operand=torch.finfo(dtype).eps / 2)
        assert within(problem, (loss, grad), rounding)
    else:
        leaf = problem.z_s.float()
        found = dataclasses.replace(problem, z_s=leaf).results(method=method)
        assert within(problem, found, "float32")
        # The gradient of a leaf of that dtype is this one, rounded.
        assert torch.equal(found[1].to(dtype), grad)


@method
@similarity
def test_columns_that_repeat_count_as_often(similarity, method, device):
    problem = draw(4, 10, 6, 16, similarity, device=device)  # ten of six: some repeat
    assert within(problem, problem.results(method=method), "float32")


@method
@similarity
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction, similarity, method, device):
    problem = draw(7, 20, 40, 16, similarity, torch.float64, device)
    losses, grads = problem.results(method=method)
    leaf = dataclasses.replace(problem, z_s=problem.z_s.requires_grad_())
    loss = leaf.call(sampled_relational_loss, reduction=reduction, method=method)
    (grad,) = torch.autograd.grad(loss.sum(), leaf.z_s)
    divisor = 7 if reduction == "mean" else 1
    wanted = losses if reduction == "none" else losses.sum() / divisor
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(grad, grads / divisor)


@method
@similarity
def test_the_loss_alone_is_the_same(similarity, method, device):
    problem = draw(7, 20, 40, 16, similarity, torch.float64, device)
    with torch.no_grad():
        alone = problem.call(sampled_relational_loss, reduction="none", method=method)
    torch.testing.assert_close(alone, problem.results(method=method)[0])


@method
@similarity
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction, similarity, method):
    problem = draw(3, 6, 9, 5, similarity, torch.float64)
    problem.nce_t, problem.tau_s, problem.tau_t = 0.5, 0.3, 0.2
    if problem.normalizers is not None:
        problem.normalizers.fill_(2.0)

    def function(z_s):
        leaf = dataclasses.replace(problem, z_s=z_s)
        return leaf.call(sampled_relational_loss, reduction=reduction, method=method)

    assert torch.autograd.gradcheck(function, problem.z_s.requires_grad_())


@method
@similarity
def test_equal_runs_give_equal_bits(similarity, method, device):
    problem = draw(9, 200, 400, 40, similarity, device=device)
    first, second = (problem.results(method=method) for _ in range(2))
    for value, wanted in zip(first, second, strict=True):
        assert torch.equal(value, wanted)


@method
def test_any_strides(method, device):
    problem = draw(6, 30, 50, 24, device=device)
    wanted = problem.results(method=method)
    wide = torch.stack((problem.z_s, problem.z_t), dim=2)
    found = dataclasses.replace(
        problem,
        z_s=wide[..., 0],
        z_t=wide[..., 1],
        memory_v1=problem.memory_v1.T.contiguous().T,
        memory_v2=torch.cat((problem.memory_v2, problem.memory_v2), dim=1)[:, :24],
        contrast_idx=problem.contrast_idx.T.contiguous().T,
    ).results(method=method)
    for value, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, expected)
    row = dataclasses.replace(problem, z_t=problem.z_t[:1].expand(6, 24))
    assert within(row, row.results(method=method), "float32")


@method
def test_empty_batch(method, device):
    problem = draw(3, 5, 9, 8, device=device)
    for name in ("z_s", "z_t", "contrast_idx"):
        setattr(problem, name, getattr(problem, name)[:0])
    problem.z_s.requires_grad_()
    loss = problem.call(sampled_relational_loss, method=method)
    loss.backward()
    assert loss.item() == 0
    assert problem.z_s.grad.shape == (0, 8)
    assert problem.call(sampled_relational_loss, method=method, reduction="none").shape == (0,)


@method
@similarity
def test_zero_row_and_row_that_is_not_finite(similarity, method, device):
    problem = draw(4, 12, 20, 8, similarity, torch.float64, device)
    problem.z_s[1] = 0
    assert within(problem, problem.results(method=method), "float64")
    problem.z_s[2, 3] = float("nan")
    loss, _ = problem.results(method=method)
    assert loss.isnan().tolist() == [False, False, True, False]


@method
@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan")])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_normalizers_that_are_not_set(backend, value, method, device):
    problem = draw(4, 12, 20, 8, device=device)
    problem.normalizers[1] = value
    loss = problem.call(sampled_relational_loss, method=method, backend=backend)
    assert loss.isnan()


@method
def test_backward_after_the_memory_has_moved(method, device):
    problem = draw(4, 12, 20, 8, device=device)
    problem.z_s.requires_grad_()
    (wanted,) = torch.autograd.grad(
        problem.call(sampled_relational_loss, method=method), problem.z_s
    )
    loss = problem.call(sampled_relational_loss, method=method)
    index = torch.arange(4, device=device)
    momentum_update_(problem.memory_v2, index, torch.randn(4, 8, device=device))
    (grad,) = torch.autograd.grad(loss, problem.z_s)
    assert torch.equal(grad, wanted)


def test_no_second_derivative_and_no_forward_mode(device):
    problem = draw(4, 12, 20, 8, device=device)
    problem.z_s.requires_grad_()
    loss = problem.call(sampled_relational_loss, backend="fused")
    (grad,) = torch.autograd.grad(loss, problem.z_s, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        (grad.square().sum() + problem.z_s.sum()).backward()

    with torch.autograd.forward_ad.dual_level():
        z_s = problem.z_s.detach()
        dual = torch.autograd.forward_ad.make_dual(z_s, torch.ones_like(z_s))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.ops.rrd_kernels.sampled_relational_loss(
                *views(dataclasses.replace(problem, z_s=dual)),
                *(None, 0.1, 0.02, 0.07, None, 1, "auto"),
            )


def test_forward_mode_is_the_references(device):
    problem = draw(4, 12, 20, 8, dtype=torch.float64, device=device)

    def function(z_s, backend="auto"):
        return dataclasses.replace(problem, z_s=z_s).call(sampled_relational_loss, backend=backend)

    z_s = problem.z_s.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(z_s).sum(), z_s)
    _, found = torch.func.jvp(function, (problem.z_s,), (torch.ones_like(problem.z_s),))
    torch.testing.assert_close(found.sum(), gradient.sum())
    with pytest.raises(RuntimeError, match="need backend='reference'"):
        torch.func.jvp(
            lambda z_s: function(z_s, "fused"), (problem.z_s,), (torch.ones_like(problem.z_s),)
        )


@pytest.mark.parametrize("wrong", [-1, 20, 2**62, -(2**63)])
@method
def test_column_that_is_not_a_row(method, wrong, device):
    problem = draw(4, 12, 20, 8, device=device)
    problem.contrast_idx[2, 5] = wrong
    if device.type == "cpu" and not EMULATED:
        with pytest.raises(IndexError, match=f"contrast_idx has {wrong}.*20 rows"):
            problem.results(method=method)
        return
    loss, grad = problem.results(method=method)
    assert loss.isnan().tolist() == [False, False, True, False]
    assert grad[2].isnan().all()
    assert grad[[0, 1, 3]].isfinite().all()


@pytest.mark.skipif(EMULATED, reason="the reference, and the CPU's bare operator")
def test_what_the_reference_and_the_bare_operator_refuse():
    problem = draw(4, 12, 20, 8)
    problem.contrast_idx[2, 5] = -1
    before = problem.normalizers.clone()
    with pytest.raises(IndexError, match=r"contrast_idx must be in \[0, 20\)"):
        problem.call(sampled_relational_loss, backend="reference")
    unset = torch.full((2,), -1.0)
    with pytest.raises(IndexError, match="contrast_idx"):
        estimate_normalizers_(unset, *views(problem), backend="reference")
    assert torch.equal(unset, torch.full((2,), -1.0))
    with pytest.raises(IndexError, match="index must be in"):
        momentum_update_(
            problem.memory_v1, torch.tensor([-1]), torch.ones(1, 8), backend="reference"
        )
    problem.contrast_idx[2, 5] = 0
    operator = torch.ops.rrd_kernels.sampled_relational_loss
    for normalizers, idx, method, text in (
        (before[:1], problem.contrast_idx, "auto", "normalizers must be"),
        (before, problem.contrast_idx[:, :0], "auto", "contrast_idx must name at least one row"),
        (before, problem.contrast_idx, "sparse", "method must be 'auto', 'dense' or 'gather'"),
    ):
        with pytest.raises(ValueError, match=text):
            operator(*views(problem)[:4], idx, normalizers, 0.1, 0.02, 0.07, None, 1, method)


def test_auto_takes_one_of_the_two(device):
    for size in ((16, 300, 50, 8), (2, 3, 3000, 8)):
        problem = draw(*size, device=device)
        found = problem.results(method="auto")[1]
        assert any(torch.equal(found, problem.results(method=m)[1]) for m in METHODS)


def test_opcheck():
    problem = draw(4, 12, 20, 8, torch.float32)
    problem.z_s.requires_grad_()
    numbers = (0.1, 0.02, 0.07, None, 1, "auto")
    torch.library.opcheck(
        torch.ops.rrd_kernels.sampled_relational_loss.default,
        (*views(problem), problem.normalizers, *numbers),
    )
    problem.z_s.requires_grad_(False)
    torch.library.opcheck(
        torch.ops.rrd_kernels.estimate_normalizers_.default,
        (torch.full((2,), -1.0), *views(problem), 0.07),
    )
    torch.library.opcheck(
        torch.ops.rrd_kernels.momentum_update_.default,
        (problem.memory_v1, torch.arange(4), problem.z_s, 0.5),
    )


def test_what_the_published_similarity_does_to_the_loss():
    """docs/momentum-memory.md: ln P while the cosines of a student's and its teacher's rows are
    moderate, near zero when they are high; and the cosine's own is neither."""
    rows, columns, dim = 50000, 1025, 128
    problem = draw(4, columns, rows, dim, "exponential", torch.float64)
    limit = torch.tensor(columns).log().item()
    z_s = torch.nn.functional.normalize(problem.z_s, dim=1)
    own = problem.contrast_idx[:, 0] = torch.arange(4)

    def loss_at(cosine):
        """With the sample's own rows at this cosine from its embeddings."""
        for z, memory in ((z_s, problem.memory_v2), (problem.z_t, problem.memory_v1)):
            unit = torch.nn.functional.normalize(z, dim=1)
            other = torch.randn_like(unit)
            other -= (other * unit).sum(1, keepdim=True) * unit
            other = torch.nn.functional.normalize(other, dim=1)
            memory[own] = cosine * unit + (1 - cosine**2) ** 0.5 * other
        return problem.call(reference.sampled_relational_loss).item()

    assert abs(loss_at(0.0) - limit) < 1e-2
    assert abs(loss_at(0.6) - limit) < 0.1
    assert loss_at(0.8) < limit / 2
    assert loss_at(0.9) < 1e-3
    problem.normalizers = None
    assert abs(loss_at(0.5) - limit) > 0.5
