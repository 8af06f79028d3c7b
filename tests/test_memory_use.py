"""Extra memory: at most 2 MiB a thread and O(B * D), whatever K is."""

import forked
import pytest
import torch
from ranks import on_ranks

from benchmarks.measuring.memory import CLEAR_REFS, peak_extra_memory
from rrd_kernels import RRDLoss
from rrd_kernels.fifo.start import ROWS_AT_ONCE
from rrd_kernels.functional import (
    relational_loss,
    sampled_contrastive_loss,
    sampled_relational_loss,
)

MIB = 1 << 20
THREADS = 2
LARGER = ((512, 128), (64, 1024))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def measure(batch, dim, rows, dtype, layout, backend, terms=None):
    """Prints the least peak of three: other work on the machine can only add to it."""
    torch.set_num_threads(THREADS)
    memory = torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).to(dtype)
    if layout == "transposed":
        memory = memory.T.contiguous().T
    z_s = torch.randn(batch, dim).to(dtype).requires_grad_()
    z_t = torch.randn(batch, dim).to(dtype)

    def step(memory):
        loss = relational_loss(z_s, z_t, memory, unit_memory=True, backend=backend, **terms or {})
        torch.autograd.grad(loss, z_s)

    step(memory[:64])
    print(min(peak_extra_memory(lambda: step(memory)) for _ in range(3)))


def printed(program, *arguments) -> int:
    """In a process of its own: what earlier work has left in the allocator blurs the figure."""
    done = forked.run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def peak(batch, dim, rows, dtype=torch.float32, layout="plain", backend="fused") -> int:
    return printed(measure, batch, dim, rows, dtype, layout, backend)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system does not count a peak")
class TestPeak:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        ("batch", "dim"),
        [(64, 128), *(pytest.param(*size, marks=pytest.mark.long) for size in LARGER)],
    )
    def test_within_the_bound(self, batch, dim, dtype):
        element = 8 if dtype == torch.float64 else 4
        # O(B * D): unit rows and packed queries of both sides, both outputs, gradient, its copy.
        bound = THREADS * 2 * MIB + 10 * batch * dim * element
        assert peak(batch, dim, 32768, dtype) <= bound

    @pytest.mark.parametrize(
        ("terms", "dim"),
        [({"own_pair": True, "tau_t": 0.0}, 128), ({"own_pair": True, "divergence": "kl"}, 512)],
        ids=["hard target", "own pair, kl"],
    )
    def test_of_the_family(self, terms, dim):
        """What users of MoCo and its like are promised, at their batch of 256 rows."""
        shape = (256, dim, 1 << 16, torch.float32, "plain", "fused")
        assert printed(measure, *shape, terms) <= 16 * 256 * dim + 4 * MIB

    @pytest.mark.parametrize("layout", ["plain", "transposed"])
    @pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
    def test_flat_in_the_rows(self, dtype, layout):
        # One float for each further row would be 2 MiB; the measure's own noise is some 100 KiB.
        small = peak(64, 128, 1 << 14, dtype, layout)
        large = peak(64, 128, (1 << 14) + (1 << 19), dtype, layout)
        assert large <= small + MIB

    def test_the_measure_sees_matrices(self):
        """The reference's four or more B x K matrices: else a flat line would prove nothing."""
        rows = 1 << 16
        assert peak(64, 128, rows, backend="reference") > 4 * 64 * rows * 4


def measure_sampled(function, method, stored, backend):
    """The momentum memory at its official size: the published code gathers two tensors of 537 MB.
    Of the reference, 200 columns."""
    torch.set_num_threads(THREADS)
    batch, columns, rows, dim = 64, 16385, 50000, 128
    z = torch.randn(2, batch, dim).requires_grad_()
    memories = (torch.randn(2, rows, dim) / dim**0.5).to(stored)
    columns = 200 if backend == "reference" else columns
    contrast_idx = torch.randint(rows, (batch, columns))
    normalizers = torch.full((2,), 1e5)

    def step():
        loss = function(*z, *memories, contrast_idx, normalizers, method=method, backend=backend)
        torch.autograd.grad(loss, z)

    step()
    print(min(peak_extra_memory(step) for _ in range(3)))


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system does not count a peak")
class TestSampledPeak:
    @pytest.mark.parametrize("stored", DTYPES[:2], ids=str)
    @pytest.mark.parametrize("method", ["dense", "gather"])
    @pytest.mark.parametrize("function", [sampled_relational_loss, sampled_contrastive_loss])
    def test_within_64_mib(self, function, method, stored):
        assert printed(measure_sampled, function, method, stored, "fused") <= 64 * MIB

    def test_the_measure_sees_gathered_rows(self):
        """Two tensors of B x P x D."""
        shape = (sampled_relational_loss, "auto", torch.float32, "reference")
        assert printed(measure_sampled, *shape) > 2 * 64 * 200 * 128 * 4


def spread_over_ranks(rank, rows, dim):
    """Bytes of a rank's rows, and what it took at most to make them and to train twice."""
    f_s, f_t = torch.randn(2, 16, dim, requires_grad=True)
    held = 0

    def train():
        nonlocal held
        sizes = {"s_dim": dim, "t_dim": dim, "feat_dim": dim, "nce_k": rows}
        criterion = RRDLoss(**sizes, gather="shard", start="unit", memory_dtype=torch.bfloat16)
        for _ in range(2):
            criterion(f_s, f_t).backward()
        held = criterion.state_dict()["memory.queue"].to_local().nbytes

    return peak_extra_memory(train), held


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system does not count a peak")
@pytest.mark.long
def test_a_memory_that_one_process_need_not_hold():
    """Made and used in parts: beside its bfloat16 rows a process takes the float32 ones that they
    are made of, of what else there is some rows at a time, and 64 MiB for all that is no memory."""
    rows, dim = 2**21, 128
    pieces = ROWS_AT_ONCE * dim * (4 + 8 + 8)
    for peak, held in on_ranks(2, spread_over_ranks, rows, dim):
        assert held == rows // 2 * dim * 2
        assert held < peak < 3 * held + pieces + 64 * MIB
