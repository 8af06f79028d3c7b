"""sampled_contrastive_loss: right by both methods, in every precision, for both embeddings."""

import dataclasses

import pytest
import torch
from contrastive_problems import METHODS, draw, within
from emulated import EMULATED
from problems import rounding_of, runs_triton

from rrd_kernels import reference
from rrd_kernels.functional import momentum_update_, sampled_contrastive_loss

PRECISION = {torch.float64: "float64", torch.float32: "float32"}
# B, P, n_data, D
SIZES = [
    (1, 1, 1, 1),
    (5, 7, 13, 20),
    (6, 40, 300, 130),
    (2, 33, 17, 300),
    (2, 20, 30, 1030),
    (33, 257, 70, 64),
    (8, 1025, 5000, 128),
]
if EMULATED:
    SIZES = [size for size in SIZES if size[0] * size[2] <= 3000]

method = pytest.mark.parametrize("method", METHODS)


@method
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_against_float64(dtype, size, method, device):
    problem = draw(*size, dtype, device)
    assert within(problem, problem.results(method=method), PRECISION[dtype])


@method
@pytest.mark.parametrize(
    "mistake", ["views", "column", "positive", "normalizer", "nce_t", "n_data", "eps"]
)
def test_the_bounds_see_small_mistakes(mistake, method, device, monkeypatch):
    problem = draw(6, 40, 300, 24, torch.float64, device)
    wrong = dataclasses.replace(problem)
    if mistake == "views":
        wrong.memory_v1, wrong.memory_v2 = problem.memory_v2, problem.memory_v1
    elif mistake == "column":
        wrong.contrast_idx = problem.contrast_idx[:, :-1]
    elif mistake == "positive":
        wrong.contrast_idx = problem.contrast_idx.flip(1)
    elif mistake == "normalizer":
        wrong.normalizers = problem.normalizers.flip(0)
    elif mistake == "nce_t":
        wrong.nce_t *= 1 + 1e-6
    elif mistake == "n_data":  # a row that no column names, and Z as for one row less
        more = [torch.cat([memory, memory[:1]]) for memory in (wrong.memory_v1, wrong.memory_v2)]
        wrong.memory_v1, wrong.memory_v2 = more
    else:
        monkeypatch.setattr(reference, "CONTRASTIVE_EPS", 2e-7)
        found = problem.results(reference.sampled_contrastive_loss)
        monkeypatch.undo()
        assert not within(problem, found, "float64")
        return
    assert within(problem, problem.results(method=method), "float64")
    assert not within(problem, wrong.results(method=method), "float64")


@method
def test_a_memory_of_another_dtype(method, device):
    for stored in (torch.bfloat16, torch.float16, torch.float64):
        problem = draw(5, 30, 50, 24, torch.float32, device, memory_dtype=stored)
        precision = "float64" if stored == torch.float64 else "float32"
        loss, *grads = problem.results(method=method)
        assert loss.dtype == (torch.float64 if stored == torch.float64 else torch.float32)
        assert all(grad.dtype == torch.float32 for grad in grads)
        wide = dataclasses.replace(problem, z_s=problem.z_s.double(), z_t=problem.z_t.double())
        assert within(problem, wide.results(method=method, precision=precision), precision)


@method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype, method, device):
    """On a CPU these are computed in float32; a GPU multiplies them as they are."""
    problem = draw(5, 30, 50, 24, dtype, device)
    found = problem.results(method=method)
    assert found[0].dtype == torch.float32
    assert {grad.dtype for grad in found[1:]} == {dtype}
    if runs_triton(device):
        # The gradients of leaves of this dtype are rounded to it, as queries and rows are.
        rounding = rounding_of(str(dtype).removeprefix("torch."), device)
        rounding = dataclasses.replace(rounding, operand=torch.finfo(dtype).eps / 2)
        assert within(problem, found, rounding)
    else:
        wide = dataclasses.replace(problem, z_s=problem.z_s.float(), z_t=problem.z_t.float())
        exact = wide.results(method=method)
        assert within(problem, exact, "float32")
        for grad, value in zip(found[1:], exact[1:], strict=True):
            assert torch.equal(grad, value.to(dtype))


@method
def test_a_positive_that_is_told_apart_well(method, device):
    """Its rounding would be all that is left of softplus(h) - h, and of sigmoid(h) - 1."""
    problem = draw(4, 20, 80, 16, device=device)
    problem.nce_t = 0.05
    problem.contrast_idx = torch.arange(80, device=device).view(4, 20)
    problem.normalizers.fill_(80.0)
    for z, memory in ((problem.z_s, problem.memory_v2), (problem.z_t, problem.memory_v1)):
        unit = torch.nn.functional.normalize(z, dim=1)
        memory.copy_(-unit.repeat_interleave(20, 0))
        memory[::20] = unit + 0.02 * torch.randn_like(unit)
    found = problem.results(method=method)
    assert within(problem, found, "float32")
    # What would be lost: each gradient is larger than its bound.
    still = (found[0], *map(torch.zeros_like, found[1:]))
    assert not within(problem, still, "float32")


@method
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction, method, device):
    problem = draw(7, 20, 40, 16, torch.float64, device)
    losses, *wanted = problem.results(method=method)
    leaves = [z.requires_grad_() for z in (problem.z_s, problem.z_t)]
    loss = problem.call(reduction=reduction, method=method)
    grads = torch.autograd.grad(loss.sum(), leaves)
    divisor = 7 if reduction == "mean" else 1
    torch.testing.assert_close(loss, losses if reduction == "none" else losses.sum() / divisor)
    for grad, each in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, each / divisor)


@method
def test_one_gradient_or_none_is_the_same(method, device):
    problem = draw(7, 20, 40, 16, torch.float64, device)
    loss, *grads = problem.results(method=method)
    alone = problem.call(reduction="none", method=method)
    assert torch.equal(alone, loss)
    assert not alone.requires_grad
    for name, wanted in zip(("z_s", "z_t"), grads, strict=True):
        leaf = getattr(problem, name).clone().requires_grad_()
        one = dataclasses.replace(problem, **{name: leaf}).call(reduction="sum", method=method)
        assert torch.equal(torch.autograd.grad(one, leaf)[0], wanted)


@method
def test_gradcheck(method):
    problem = draw(3, 6, 9, 5, torch.float64)
    problem.nce_t = 0.5
    problem.normalizers.fill_(2.0)

    def function(z_s, z_t):
        return dataclasses.replace(problem, z_s=z_s, z_t=z_t).call(method=method)

    leaves = problem.z_s.requires_grad_(), problem.z_t.requires_grad_()
    assert torch.autograd.gradcheck(function, leaves)


@method
def test_equal_runs_give_equal_bits(method, device):
    problem = draw(9, 200, 400, 40, device=device)
    runs = (problem.results(method=method) for _ in range(2))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@method
def test_columns_that_repeat_and_the_positive_among_the_negatives(method, device):
    problem = draw(4, 10, 6, 16, device=device)  # ten of six: some repeat
    problem.contrast_idx[:, 3] = problem.contrast_idx[:, 0]
    assert within(problem, problem.results(method=method), "float32")


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


@method
def test_empty_batch(method, device):
    problem = draw(3, 5, 9, 8, device=device)
    for name in ("z_s", "z_t", "contrast_idx"):
        setattr(problem, name, getattr(problem, name)[:0])
    loss, *grads = problem.results(method=method)
    assert loss.shape == (0,)
    assert all(grad.shape == (0, 8) for grad in grads)
    assert problem.call(method=method).item() == 0


@method
def test_zero_row_and_row_that_is_not_finite(method, device):
    problem = draw(4, 12, 20, 8, torch.float64, device)
    problem.z_s[1] = problem.z_t[2] = 0
    assert within(problem, problem.results(method=method), "float64")
    problem.z_t[3, 3] = float("nan")
    loss, _, grad_t = problem.results(method=method)
    assert loss.isnan().tolist() == [False, False, False, True]
    assert grad_t.isnan().any(1).tolist() == [False, False, False, True]


@method
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_normalizers_that_are_not_set(backend, method, device):
    for view, value in ((0, -1.0), (1, 0.0), (1, float("nan"))):
        problem = draw(4, 12, 20, 8, device=device)
        problem.normalizers[view] = value
        assert problem.call(method=method, backend=backend).isnan()


@method
def test_a_similarity_that_would_overflow(method, device):
    """exp(s / T) does, at the published form's step to x; a logit does not."""
    problem = draw(4, 12, 20, 8, device=device)
    problem.nce_t = 0.002
    found = problem.results(method=method)
    assert all(value.isfinite().all() for value in found)
    assert within(problem, found, "float32")


@method
def test_backward_after_the_memories_have_moved(method, device):
    problem = draw(4, 12, 20, 8, device=device)
    leaves = [z.requires_grad_() for z in (problem.z_s, problem.z_t)]
    wanted = torch.autograd.grad(problem.call(method=method), leaves)
    loss = problem.call(method=method)
    index = torch.arange(4, device=device)
    for memory in (problem.memory_v1, problem.memory_v2):
        momentum_update_(memory, index, torch.randn(4, 8, device=device))
    for grad, value in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        assert torch.equal(grad, value)


def test_no_second_derivative_and_no_forward_mode(device):
    problem = draw(4, 12, 20, 8, device=device)
    problem.z_t.requires_grad_()
    loss = problem.call(backend="fused")
    (grad,) = torch.autograd.grad(loss, problem.z_t, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        (grad.square().sum() + problem.z_t.sum()).backward()
    with torch.autograd.forward_ad.dual_level():
        z_t = problem.z_t.detach()
        dual = torch.autograd.forward_ad.make_dual(z_t, torch.ones_like(z_t))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.ops.rrd_kernels.sampled_contrastive_loss(
                *dataclasses.replace(problem, z_t=dual).tensors, 0.07, None, 1, "auto"
            )


def test_forward_mode_and_vmap_are_the_references(device):
    problem = draw(4, 12, 20, 8, dtype=torch.float64, device=device)

    def function(z_t, backend="auto"):
        return dataclasses.replace(problem, z_t=z_t).call(backend=backend)

    z_t = problem.z_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(z_t), z_t)
    _, found = torch.func.jvp(function, (problem.z_t,), (torch.ones_like(problem.z_t),))
    torch.testing.assert_close(found, gradient.sum())
    each = torch.vmap(function)(torch.stack([problem.z_t, 2 * problem.z_t]))
    torch.testing.assert_close(each, function(problem.z_t).expand(2))
    with pytest.raises(RuntimeError, match="need backend='reference'"):
        torch.vmap(lambda z_t: function(z_t, "fused"))(problem.z_t[None])


@pytest.mark.parametrize("wrong", [-1, 20, 2**62])
@pytest.mark.parametrize("place", [0, 5])
@method
def test_column_that_is_not_a_row(method, place, wrong, device):
    problem = draw(4, 12, 20, 8, device=device)
    problem.contrast_idx[2, place] = wrong
    if device.type == "cpu" and not EMULATED:
        with pytest.raises(IndexError, match=f"contrast_idx has {wrong}.*20 rows"):
            problem.results(method=method)
        return
    loss, *grads = problem.results(method=method)
    assert loss.isnan().tolist() == [False, False, True, False]
    for grad in grads:
        assert grad[2].isnan().all()
        assert grad[[0, 1, 3]].isfinite().all()


@pytest.mark.skipif(EMULATED, reason="the reference, and the CPU's bare operator")
def test_what_the_reference_and_the_bare_operator_refuse():
    problem = draw(4, 12, 20, 8)
    operator = torch.ops.rrd_kernels.sampled_contrastive_loss
    *views, contrast_idx, normalizers = problem.tensors
    for idx, given, method, text in (
        (contrast_idx, normalizers[:1], "auto", "normalizers must be"),
        (contrast_idx[:, :0], normalizers, "auto", "contrast_idx must name at least one row"),
        (contrast_idx, normalizers, "sparse", "method must be 'auto', 'dense' or 'gather'"),
        (contrast_idx[:3], normalizers, "auto", "do not fit"),
    ):
        with pytest.raises(ValueError, match=text):
            operator(*views, idx, given, 0.07, None, 1, method)
    problem.contrast_idx[2, 5] = -1
    with pytest.raises(IndexError, match=r"contrast_idx must be in \[0, 20\)"):
        problem.call(backend="reference")


@pytest.mark.parametrize(
    ("replaced", "kind", "text"),
    [
        ({"normalizers": torch.ones(3)}, ValueError, r"normalizers must have shape \(2,\)"),
        ({"normalizers": None}, TypeError, "normalizers must be"),
        ({"nce_t": 0.0}, ValueError, "nce_t must be"),
        ({"contrast_idx": torch.zeros(4, 0, dtype=torch.int64)}, ValueError, "at least one row"),
        ({"contrast_idx": torch.zeros(4, 12)}, TypeError, "contrast_idx must be"),
        ({"z_t": torch.zeros(3, 8)}, ValueError, "z_s and z_t|z_t.*z_s|same"),
        ({"memory_v1": torch.zeros(19, 8)}, ValueError, "memory_v1.*memory_v2|same"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(replaced, kind, text):
    problem = draw(4, 12, 20, 8)
    names = ("z_s", "z_t", "memory_v1", "memory_v2", "contrast_idx", "normalizers")
    given = dict(zip(names, problem.tensors, strict=True))
    with pytest.raises(kind, match=text):
        sampled_contrastive_loss(**given | replaced)


def test_auto_takes_one_of_the_two(device):
    taken = []
    for size in ((16, 300, 50, 8), (2, 3, 3000, 8)):
        problem = draw(*size, device=device)
        found = problem.results(method="auto")[1]
        same = [torch.equal(found, problem.results(method=m)[1]) for m in METHODS]
        taken.append(METHODS[same.index(True)])
    assert taken == ["dense", "gather"]


def test_opcheck():
    problem = draw(4, 12, 20, 8, torch.float32)
    for needs in ((True, True), (False, True)):
        problem.z_s.requires_grad_(needs[0])
        problem.z_t.requires_grad_(needs[1])
        torch.library.opcheck(
            torch.ops.rrd_kernels.sampled_contrastive_loss.default,
            (*problem.tensors, 0.07, None, 1, "auto"),
        )
