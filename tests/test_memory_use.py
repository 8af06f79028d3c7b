"""Extra memory: at most 2 MiB a thread and O(B * D), whatever K is."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measuring.memory import CLEAR_REFS

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
THREADS = 2

# In a process of its own: what earlier work has left in the allocator would blur the figure. The
# least of three, because other work on the machine can only add to it.
PROGRAM = """
import sys, torch
from benchmarks.measuring.memory import peak_extra_memory
from rrd_kernels.functional import relational_loss
batch, dim, rows, threads = map(int, sys.argv[1:5])
dtype, layout, backend = getattr(torch, sys.argv[5]), *sys.argv[6:]
torch.set_num_threads(threads)
memory = torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).to(dtype)
if layout == "transposed":
    memory = memory.T.contiguous().T
z_s = torch.randn(batch, dim).to(dtype).requires_grad_()
z_t = torch.randn(batch, dim).to(dtype)

def step(memory):
    loss = relational_loss(z_s, z_t, memory, unit_memory=True, backend=backend)
    torch.autograd.grad(loss, z_s)

step(memory[:64])
print(min(peak_extra_memory(lambda: step(memory)) for _ in range(3)))
"""


def peak(batch, dim, rows, dtype="float32", layout="plain", backend="fused") -> int:
    arguments = map(str, (batch, dim, rows, THREADS, dtype, layout, backend))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system does not count a peak")
class TestPeak:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
    @pytest.mark.parametrize(("batch", "dim"), [(64, 128), (512, 128), (64, 1024)])
    def test_within_the_bound(self, batch, dim, dtype):
        element = 8 if dtype == "float64" else 4
        # O(B * D): unit rows and packed queries of both sides, both outputs, gradient, its copy.
        bound = THREADS * 2 * MIB + 10 * batch * dim * element
        assert peak(batch, dim, 32768, dtype) <= bound

    @pytest.mark.parametrize("layout", ["plain", "transposed"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_flat_in_the_rows(self, dtype, layout):
        # One float for each further row would be 2 MiB; the measure's own noise is some 100 KiB.
        small = peak(64, 128, 1 << 14, dtype, layout)
        large = peak(64, 128, (1 << 14) + (1 << 19), dtype, layout)
        assert large <= small + MIB

    def test_the_measure_sees_matrices(self):
        """The reference's four or more B x K matrices: else a flat line would prove nothing."""
        rows = 1 << 16
        assert peak(64, 128, rows, backend="reference") > 4 * 64 * rows * 4


# The momentum memory at its official size: the published code gathers two tensors of 537 MB.
SAMPLED = """
import sys, torch
from benchmarks.measuring.memory import peak_extra_memory
from rrd_kernels.functional import sampled_relational_loss
batch, columns, rows, dim = 64, 16385, 50000, 128
method, stored, backend = sys.argv[1:]
z_s, z_t = torch.randn(2, batch, dim)
z_s.requires_grad_()
memories = (torch.randn(2, rows, dim) / dim**0.5).to(getattr(torch, stored))
contrast_idx = torch.randint(rows, (batch, columns))
normalizers = torch.full((2,), 1e5)

def step(columns=columns):
    few = contrast_idx[:, :columns].contiguous()
    loss = sampled_relational_loss(
        z_s, z_t, *memories, few, normalizers, method=method, backend=backend
    )
    torch.autograd.grad(loss, z_s)

if backend == "reference":
    step(200)
    print(peak_extra_memory(lambda: step(200)))
else:
    step()
    print(min(peak_extra_memory(step) for _ in range(3)))
"""


def sampled_peak(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SAMPLED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system does not count a peak")
class TestSampledPeak:
    @pytest.mark.parametrize("stored", ["float32", "bfloat16"])
    @pytest.mark.parametrize("method", ["dense", "gather"])
    def test_within_64_mib(self, method, stored):
        assert sampled_peak(method, stored, "fused") <= 64 * MIB

    def test_the_measure_sees_gathered_rows(self):
        """Two tensors of B x P x D, here with 200 columns, of the reference."""
        assert sampled_peak("auto", "float32", "reference") > 2 * 64 * 200 * 128 * 4
