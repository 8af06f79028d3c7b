"""The ring of slots: what is written where, what is refused, and what stays untouched."""

import pytest
import torch
import torch.nn.functional as F
from problems import runs_triton

from rrd_kernels.functional import enqueue_


def pointer(value: int, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int64, device=device)


def accuracy(device: torch.device, *dtypes: torch.dtype) -> float:
    """How far an element of a row may be from the float64 one before it is stored.

    The row is computed in float64, on a GPU in float32 unless one of the two is float64. A mixture
    as short as 1 - 2 * 0.4 multiplies the roundoffs of a row of norm 1 by 5.
    """
    single = runs_triton(device) and torch.float64 not in dtypes
    return 16 * (2.0**-23 if single else 2.0**-52)


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
    close = {"rtol": 2**-23, "atol": accuracy(device, torch.float32)}
    torch.testing.assert_close(memory[slots].double(), last, **close)


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
