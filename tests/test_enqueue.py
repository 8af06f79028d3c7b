"""The ring of slots: what is written where, what is refused, and what stays untouched."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rrd_kernels import reference
from rrd_kernels.functional import enqueue_

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def pointer(value: int, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int64, device=device)


@settings(deadline=None)
@given(
    size=st.integers(1, 50),
    batch=st.integers(0, 50),
    dim=st.integers(1, 40),
    start=st.integers(0, 49),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    momentum=st.sampled_from([0.0, 0.4, 0.9]),
    bad=st.sampled_from([None, float("nan"), float("inf"), -float("inf")]),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_matches_the_reference(size, batch, dim, start, dtypes, momentum, bad, transposed, seed):
    torch.manual_seed(seed)
    batch, start = min(batch, size), start % size
    memory = F.normalize(torch.randn(size, dim), dim=1).to(dtypes[0])
    keys = torch.randn(batch, dim).to(dtypes[1])
    if bad is not None and batch:
        keys[batch // 2, dim // 2] = bad
    if transposed:
        memory, keys = memory.T.contiguous().T, keys.T.contiguous().T
    wanted, wanted_ptr = memory.clone(), pointer(start)
    reference.enqueue_(wanted, wanted_ptr, keys, momentum=momentum)
    ptr = pointer(start)
    enqueue_(memory, ptr, keys, momentum=momentum)
    assert torch.equal(ptr, wanted_ptr)
    # Both compute in float64, where a mixture as short as 1 - 2 * 0.4 multiplies the roundoff of
    # a row of norm 1 by 5; then one rounding to the stored dtype, which may fall either way.
    spacing = torch.finfo(dtypes[0]).eps
    torch.testing.assert_close(memory, wanted, rtol=spacing, atol=16 * 2.0**-52)


def test_wraps_over_many_steps(device):
    memory, ptr = torch.zeros(7, 3, device=device), pointer(0, device)
    written = []
    for _ in range(5):
        keys = torch.randn(3, 3, device=device)
        written.append(F.normalize(keys.double(), dim=1))
        enqueue_(memory, ptr, keys)
    assert ptr.item() == 15 % 7
    last = torch.cat(written)[-7:]
    slots = [(15 - 7 + i) % 7 for i in range(7)]
    torch.testing.assert_close(memory[slots].double(), last, rtol=2**-23, atol=0)


def test_other_slots_keep_every_bit(device):
    memory, ptr = torch.randn(10, 4, device=device), pointer(8, device)
    before = memory.clone()
    enqueue_(memory, ptr, torch.randn(3, 4, device=device))
    assert torch.equal(memory[1:8], before[1:8])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_row_that_is_not_finite_keeps_the_slot(bad, momentum, device):
    memory, ptr = torch.randn(6, 4, device=device), pointer(4, device)
    before = memory.clone()
    keys = torch.randn(4, 4, device=device)
    keys[1, 2] = bad
    enqueue_(memory, ptr, keys, momentum=momentum)
    assert torch.equal(memory[5], before[5])
    assert not torch.equal(memory[4], before[4])
    assert memory.isfinite().all()
    assert ptr.item() == (4 + 4) % 6


def test_zero_row_becomes_a_zero_slot(device):
    memory, ptr = torch.ones(3, 4, device=device), pointer(0, device)
    enqueue_(memory, ptr, torch.zeros(1, 4, device=device))
    assert torch.equal(memory[0], torch.zeros(4, device=device))


@pytest.mark.parametrize("stored", [-1, 12, 2**62, -(2**62)])
def test_a_pointer_that_is_out_of_range_is_taken_modulo_the_size(stored, device):
    memory, ptr = torch.zeros(5, 2, device=device), pointer(stored, device)
    enqueue_(memory, ptr, torch.ones(2, 2, device=device))
    first = stored % 5
    assert memory.norm(dim=1).nonzero().flatten().tolist() == sorted({first, (first + 1) % 5})
    assert ptr.item() == (first + 2) % 5


def test_a_row_of_huge_or_tiny_values_has_its_direction(device):
    memory, ptr = torch.zeros(2, 2, device=device), pointer(0, device)
    enqueue_(memory, ptr, torch.tensor([[3e30, 4e30], [3e-11, 4e-11]], device=device))
    wanted = torch.tensor([[0.6, 0.8], [0.6, 0.8]], device=device)
    torch.testing.assert_close(memory, wanted)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_keys_that_are_slots_of_the_same_memory(backend, device):
    memory, ptr = F.normalize(torch.randn(6, 4, device=device), dim=1), pointer(1, device)
    before = memory.clone()
    enqueue_(memory, ptr, memory[:4], backend=backend)
    torch.testing.assert_close(memory[1:5], before[:4])
    assert torch.equal(memory[0], before[0])
