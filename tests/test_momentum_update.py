"""The two operators that write the momentum memory's state."""

import pytest
import torch
import torch.nn.functional as F
from emulated import EMULATED
from momentum_problems import draw, views
from problems import in_float64, runs_triton

from rrd_kernels import functional, reference
from rrd_kernels.functional import estimate_normalizers_, momentum_update_

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BACKENDS = pytest.mark.parametrize("backend", ["auto", "reference"])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("new", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_rows_move(stored, new, momentum, device):
    memory = F.normalize(torch.randn(30, 24, device=device), dim=1).to(stored)
    rows = torch.randn(7, 24, device=device).to(new)
    index = torch.randperm(30)[:7].to(device)
    before = memory.double().clone()
    momentum_update_(memory, index, rows, momentum)
    wanted = before.clone()
    mixed = momentum * before[index] + (1 - momentum) * F.normalize(rows.double(), dim=1)
    wanted[index] = F.normalize(mixed, dim=1)
    # Computed in float64, on a GPU in float32 unless one of the two is float64; then rounded.
    single = runs_triton(device) and torch.float64 not in (stored, new)
    accuracy = 16 * (2.0**-23 if single else 2.0**-52)
    rounding = torch.finfo(stored).eps / 2
    subnormal = torch.finfo(stored).smallest_normal * torch.finfo(stored).eps
    error = (memory.double() - wanted).abs()
    assert (error <= accuracy + rounding * (wanted.abs() + accuracy) + subnormal).all()
    untouched = torch.ones(30, dtype=torch.bool, device=device)
    untouched[index] = False
    assert torch.equal(memory.double()[untouched], before[untouched])


@BACKENDS
def test_of_an_index_given_twice_the_last_counts(backend, device):
    memory = F.normalize(torch.randn(9, 6, device=device), dim=1)
    twin = memory.clone()
    index = torch.tensor([4, 2, 4, 7, 2, 4], device=device)
    rows = torch.randn(6, 6, device=device)
    momentum_update_(memory, index, rows, backend=backend)
    last = torch.tensor([3, 4, 5], device=device)
    momentum_update_(twin, index[last], rows[last], backend=backend)
    assert torch.equal(memory, twin)


@BACKENDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_row_that_is_not_finite_leaves_the_old_one(bad, backend, device):
    memory = F.normalize(torch.randn(9, 6, device=device), dim=1)
    before = memory.clone()
    rows = torch.randn(4, 6, device=device)
    rows[1, 2] = rows[3, 0] = bad
    # Row 5 twice: its last new row is not finite, so that nothing changes.
    momentum_update_(memory, torch.tensor([3, 8, 5, 5], device=device), rows, backend=backend)
    assert memory.isfinite().all()
    changed = (memory != before).any(1).nonzero().flatten().tolist()
    assert changed == [3]


@BACKENDS
def test_rows_of_the_memory_itself_and_any_strides(backend, device):
    memory = torch.randn(6, 9, device=device).T
    before = memory.clone()
    index = torch.tensor([1, 2, 3], device=device)
    momentum_update_(memory, index, memory[:3], 0.5, backend=backend)
    wanted = before.clone()
    in_float64(reference.momentum_update_, wanted, index, before[:3].clone(), 0.5)
    torch.testing.assert_close(memory, wanted)


@pytest.mark.parametrize("wrong", [-1, 9, 2**62])
def test_an_index_out_of_range_writes_nothing(wrong, device):
    memory = torch.randn(9, 6, device=device)
    before = memory.clone()
    index = torch.tensor([3, wrong], device=device)
    if device.type == "cpu" and not EMULATED:
        with pytest.raises(IndexError, match=f"index has {wrong}.*9 rows"):
            momentum_update_(memory, index, torch.randn(2, 6))
        assert torch.equal(memory, before)
        return
    momentum_update_(memory, index, torch.randn(2, 6, device=device))
    assert (memory != before).any(1).nonzero().flatten().tolist() == [3]


def test_no_rows(device):
    memory = torch.randn(9, 6, device=device)
    before = memory.clone()
    index = torch.zeros(0, dtype=torch.int64, device=device)
    momentum_update_(memory, index, torch.zeros(0, 6, device=device))
    assert torch.equal(memory, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_normalizers_are_estimated_once(dtype, device):
    problem = draw(5, 40, 60, 24, dtype=dtype, device=device)
    found = torch.full((2,), -1.0, dtype=dtype, device=device)
    estimate_normalizers_(found, *views(problem))
    # A sum of positive terms: each is off by its argument's error, |s.m| / T times the dot's.
    relative = 64 * 24 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, problem.normalizers, rtol=relative, atol=0)
    again = found.clone()
    estimate_normalizers_(again, *views(draw(5, 40, 60, 24, dtype=dtype, device=device)))
    assert torch.equal(again, found)


@BACKENDS
def test_one_that_is_set_stays(backend, device):
    problem = draw(5, 40, 60, 24, device=device)
    found = torch.tensor([3.0, -1.0], device=device)
    estimate_normalizers_(found, *views(problem), backend=backend)
    torch.testing.assert_close(found, torch.stack((found.new_tensor(3.0), problem.normalizers[1])))


@BACKENDS
def test_a_mean_that_is_not_finite_is_not_set(backend, device):
    problem = draw(5, 40, 60, 24, device=device)
    problem.z_t[2, 3] = float("nan")
    found = torch.full((2,), -1.0, device=device)
    estimate_normalizers_(found, *views(problem), backend=backend)
    assert found[0] > 0
    assert found[1] == -1


@pytest.mark.skipif(EMULATED, reason="as on a GPU, there is no error")
def test_a_column_that_is_not_a_row_sets_nothing():
    problem = draw(5, 40, 60, 24)
    problem.contrast_idx[1, 1] = 60
    found = torch.full((2,), -1.0)
    with pytest.raises(IndexError, match="contrast_idx has 60"):
        estimate_normalizers_(found, *views(problem))
    assert torch.equal(found, torch.full((2,), -1.0))


def test_autograd_knows_of_the_writes():
    problem = draw(4, 12, 20, 8)
    for value, write in (
        (problem.memory_v1, lambda m: momentum_update_(m, torch.arange(4), problem.z_s)),
        (problem.normalizers, lambda n: estimate_normalizers_(n, *views(problem))),
    ):
        version = value._version
        write(value)
        assert value._version > version


ALL = ["sampled_relational_loss", "estimate_normalizers_", "momentum_update_"]


@pytest.mark.parametrize("name", ALL)
def test_every_function_has_its_twin(name):
    for module in (reference, functional):
        assert getattr(module, name).__doc__
