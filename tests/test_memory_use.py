"""Extra memory: at most 2 MiB a thread and O(B * D), whatever K is."""

import subprocess
import sys

import pytest

MIB = 1 << 20

# In a process of its own: what an allocator keeps from earlier work would hide a new allocation.
PEAK = """
import sys, torch
from rrd_kernels.functional import relational_loss
batch, dim, rows, dtype, threads = sys.argv[1:]
batch, dim, rows = int(batch), int(dim), int(rows)
torch.set_num_threads(int(threads))
dtype = getattr(torch, dtype)

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def step(memory):
    loss = relational_loss(z_s, z_t, memory, unit_memory=True)
    torch.autograd.grad(loss, z_s)

memory = torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).to(dtype)
if len(sys.argv) and "{layout}" == "transposed":
    memory = memory.T.contiguous().T
z_s = torch.randn(batch, dim).to(dtype).requires_grad_()
z_t = torch.randn(batch, dim).to(dtype)
small = (z_s, z_t)
z_s, z_t = z_s[:2].detach().requires_grad_(), z_t[:2]
step(memory[:64])  # threads, code and one-off buffers
z_s, z_t = small
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the high-water mark
before = status("VmRSS")
step(memory)
print(status("VmHWM") - before)
"""


def peak(batch, dim, rows, dtype="float32", threads=2, layout="plain") -> int:
    arguments = map(str, (batch, dim, rows, dtype, threads))
    done = subprocess.run(
        [sys.executable, "-c", PEAK.replace("{layout}", layout), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestPeak:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
    @pytest.mark.parametrize(("batch", "dim"), [(64, 128), (512, 128), (64, 1024)])
    def test_within_the_bound(self, batch, dim, dtype):
        element = 8 if dtype == "float64" else 4
        # O(B * D): unit rows and packed queries of both sides, both outputs, gradient, its copy.
        bound = 2 * 2 * MIB + 10 * batch * dim * element
        assert peak(batch, dim, 32768, dtype) <= bound

    @pytest.mark.parametrize("layout", ["plain", "transposed"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_flat_in_the_rows(self, dtype, layout):
        small = peak(64, 128, 1 << 14, dtype, layout=layout)
        large = peak(64, 128, 1 << 18, dtype, layout=layout)
        # 16 times the rows; what one page-fault round or another adds is a few hundred KiB.
        assert large <= small + MIB // 2

    def test_the_measure_sees_what_it_should(self):
        """The reference's B x K matrices, by the same measure: else a flat line proves nothing."""
        with_matrices = PEAK.replace("unit_memory=True", "backend='reference'")
        done = subprocess.run(
            [sys.executable, "-c", with_matrices, "64", "128", str(1 << 16), "float32", "2"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) > 4 * 64 * (1 << 16) * 4
