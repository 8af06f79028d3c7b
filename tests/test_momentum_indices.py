"""Indices of samples and columns, in any integer dtype."""

import copy

import pytest
import torch
from distillers import MEMORIES, Distiller, batches, share_of
from emulated import EMULATED
from momentum_problems import draw, views
from ranks import on_ranks

from rrd_kernels import ContrastSampler, RRDLoss, reference
from rrd_kernels.functional import (
    estimate_normalizers_,
    momentum_update_,
    sampled_relational_loss,
)
from rrd_kernels.momentum.negatives import draw_contrast_idx
from rrd_kernels.validation import INTEGERS, as_int64

OTHERS = [dtype for dtype in INTEGERS if dtype != torch.int64]
#: int8 numbers 127 samples at most, uint8 255.
N_DATA = 120

others = pytest.mark.parametrize("dtype", OTHERS, ids=str)
backends = pytest.mark.parametrize("backend", ["auto", "reference"])


def test_every_integer_dtype_of_pytorch_is_one():
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    whole = {
        dtype
        for dtype in found
        if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
        and str(dtype).removeprefix("torch.").startswith(("int", "uint"))
        and dtype.itemsize * 8 == int(str(dtype).rpartition("int")[2])  # no 4 bits in a byte
    }
    assert set(INTEGERS) == whole


def make(device, **settings):
    torch.manual_seed(7)
    sizes = {"s_dim": 6, "t_dim": 5, "feat_dim": 8, "nce_k": 20, "n_data": N_DATA}
    return RRDLoss(**sizes, memory_type="momentum", **settings).to(device)


def batch_of(device):
    idx = torch.randperm(N_DATA)[:9].to(device)
    contrast_idx = torch.randint(N_DATA, (9, 21)).to(device)
    f_s, f_t = torch.randn(9, 6, device=device), torch.randn(9, 5, device=device)
    return f_s.requires_grad_(), f_t, idx, contrast_idx


@others
@backends
@pytest.mark.parametrize("similarity", ["exponential", "cosine"])
@pytest.mark.parametrize("given", [True, False], ids=["columns given", "columns drawn"])
def test_a_training_step_is_that_of_int64(given, similarity, backend, dtype, device):
    criterion = make(device, similarity=similarity, backend=backend)
    wanted = copy.deepcopy(criterion)
    f_s, f_t, idx, contrast_idx = batch_of(device)
    twin = f_s.detach().clone().requires_grad_()
    columns, the_same = (contrast_idx.to(dtype), contrast_idx) if given else (None, None)
    torch.manual_seed(2)
    loss = criterion(f_s, f_t, idx.to(dtype), columns)
    torch.manual_seed(2)
    expected = wanted(twin, f_t, idx, the_same)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert torch.equal(f_s.grad, twin.grad)
    for key, value in wanted.state_dict().items():
        assert torch.equal(criterion.state_dict()[key], value), key
    assert torch.equal(
        criterion.eval()(f_s, f_t, idx.to(dtype), contrast_idx.to(dtype)),
        wanted.eval()(f_s, f_t, idx, contrast_idx),
    )


@others
@pytest.mark.parametrize("functions", ["auto", "reference", "reference itself"])
def test_functions(functions, dtype, device):
    problem = draw(4, 12, N_DATA, 8, device=device)
    if functions == "reference itself":
        loss, estimate, update = (
            getattr(reference, function.__name__)
            for function in (sampled_relational_loss, estimate_normalizers_, momentum_update_)
        )
        options = {}
    else:
        loss, estimate, update = sampled_relational_loss, estimate_normalizers_, momentum_update_
        options = {"backend": functions}
    index = torch.tensor([3, 119, 3, 50], device=device)
    found = []
    for kind in (dtype, torch.int64):
        given = (*views(problem)[:4], problem.contrast_idx.to(kind))
        memory = problem.memory_v1.clone()
        unset = torch.full((2,), -1.0, device=device)
        estimate(unset, *given, **options)
        update(memory, index.to(kind), problem.z_s, **options)
        found.append((loss(*given, problem.normalizers, **options), unset, memory))
    for value, wanted in zip(*found, strict=True):
        assert torch.equal(value, wanted)
    assert (found[0][2] != problem.memory_v1).any(1).nonzero().flatten().tolist() == [3, 50, 119]


@others
@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_negatives(mode, dtype, device):
    labels = torch.arange(N_DATA) % 4
    idx = torch.tensor([0, 119, 64], device=device)
    sampler = ContrastSampler(labels.to(dtype), 20, mode=mode, device=device)
    plain = ContrastSampler(labels, 20, mode=mode, device=device)
    for call in (
        lambda sampler, given: sampler(given),
        lambda sampler, given: draw_contrast_idx(given, N_DATA, 20),
    ):
        torch.manual_seed(1)
        drawn = call(sampler, idx.to(dtype))
        torch.manual_seed(1)
        assert drawn.dtype == torch.int64
        assert torch.equal(drawn, call(plain, idx))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.complex64])
def test_what_is_no_integer_is_refused(dtype):
    """A bool would be a mask, and a fraction lost."""
    problem = draw(4, 12, N_DATA, 8)
    *rows, contrast_idx = views(problem)
    idx, columns = torch.ones(4).to(dtype), contrast_idx.to(dtype)
    unset, memory = torch.full((2,), -1.0), problem.memory_v1.clone()
    calls = [
        lambda: sampled_relational_loss(*rows, columns),
        lambda: sampled_relational_loss(*rows, columns, backend="reference"),
        lambda: estimate_normalizers_(unset, *rows, columns),
        lambda: momentum_update_(memory, idx, problem.z_s),
        lambda: reference.sampled_relational_loss(*rows, columns),
        lambda: reference.estimate_normalizers_(unset, *rows, columns),
        lambda: reference.momentum_update_(memory, idx, problem.z_s),
        lambda: draw_contrast_idx(idx, N_DATA, 3),
        lambda: ContrastSampler([0, 1], 1)(idx),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"integer dtype; got {dtype}"):
            call()
    assert torch.equal(unset, torch.full((2,), -1.0))
    assert torch.equal(memory, problem.memory_v1)


TOO_LARGE = [2**63, 2**64 - 1, 2**64 - N_DATA]


@pytest.mark.parametrize("value", TOO_LARGE)
def test_what_int64_does_not_hold_is_no_row(value):
    index = torch.tensor([value, 5], dtype=torch.uint64)
    assert as_int64("index", index).tolist() == [2**63 - 1, 5]
    problem = draw(2, 12, N_DATA, 8)
    memory = problem.memory_v1.clone()
    calls = [
        lambda: reference.momentum_update_(memory, index, problem.z_s),  # takes -1 for the last
        lambda: ContrastSampler([0, 1] * 60, 1)(index),
        lambda: make("cpu")(torch.randn(2, 6), torch.randn(2, 5), index),
    ]
    if not EMULATED:  # as on a GPU, there is no error
        calls.append(lambda: momentum_update_(memory, index, problem.z_s))
    for call in calls:
        with pytest.raises(IndexError):
            call()
    assert torch.equal(memory, problem.memory_v1)


@pytest.mark.skipif(EMULATED, reason="as on a GPU, there is no error")
@pytest.mark.parametrize(("dtype", "value"), [(torch.int8, -1), (torch.uint8, 200)], ids=str)
@pytest.mark.parametrize("name", ["idx", "contrast_idx"])
def test_out_of_range(name, dtype, value):
    criterion = make("cpu")
    before = copy.deepcopy(criterion.state_dict())
    f_s, f_t, idx, contrast_idx = batch_of("cpu")
    given = {"idx": idx.to(dtype), "contrast_idx": contrast_idx.to(dtype)}
    given[name].view(-1)[3] = value
    with pytest.raises(IndexError, match=rf"{name} (must be in .* got|has) {value}"):
        criterion(f_s, f_t, **given)
    for key, kept in before.items():
        assert torch.equal(criterion.state_dict()[key], kept)


def test_int64_is_not_copied():
    index = torch.arange(6).view(2, 3)
    assert as_int64("index", index) is index
    strided = torch.arange(12).view(2, 6)[:, ::2]
    assert as_int64("index", strided) is strided


@pytest.mark.skipif(EMULATED, reason="what compiles is the same there")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint64], ids=str)
def test_compiled(dtype, backend, device):
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    criterion = make(device)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    for _ in range(2):
        f_s, f_t, idx, contrast_idx = batch_of(device)
        loss = compiled(f_s, f_t, idx.to(dtype), contrast_idx.to(dtype))
        torch.testing.assert_close(loss, eager(f_s, f_t, idx, contrast_idx))
        loss.backward()
        assert f_s.grad.isfinite().all()
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(criterion.state_dict()[key], value, msg=key)


def train_with(rank, dtypes):
    """Steps of ranks that have their indices each in a dtype of its own."""
    found = []
    for name in ("momentum", "cosine"):
        module = Distiller(**MEMORIES[name])
        for batch in batches()[:3]:
            x, f_t, idx, contrast_idx = share_of(batch, rank, [6, 6])
            module(x, f_t, idx.to(dtypes[rank]), contrast_idx.to(dtypes[rank]))
        found.append(module.state_dict())
    return found


@pytest.mark.parametrize("kinds", [(torch.uint8, torch.int64)], ids=str)
def test_ranks(kinds):
    plain = on_ranks(2, train_with, (torch.int64, torch.int64))
    for mine, wanted in zip(on_ranks(2, train_with, kinds), plain, strict=True):
        for state, expected in zip(mine, wanted, strict=True):
            for key, value in expected.items():
                assert torch.equal(state[key], value), key
