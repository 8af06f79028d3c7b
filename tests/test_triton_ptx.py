"""What PTX must have, whatever Triton it is from: proxy fences, and equal sums in a warp's lanes.

Of every kernel that test_triton_compile.py compiles, machine_code.py looks at the second too.
"""

import functools

import pytest

triton = pytest.importorskip("triton")
from emulated import EMULATED
from lanes import lopsided
from machine_code import CARDS, Job, MomentumJob
from packaging.version import Version

from rrd_kernels.triton.common.launches import STORAGE
from rrd_kernels.triton.fifo.launches import FifoSettings
from rrd_kernels.triton.momentum.launches import MomentumSettings
from rrd_kernels.triton.runtime.compiler import compile_kernel, source_of
from rrd_kernels.triton.runtime.fences import FENCE, missing_fences, with_fences
from rrd_kernels.triton.runtime.launch import specialize

SMALL, LARGE = (64, 16384), (1024, 65536)
PREPARE, ATTEND, COMBINE = range(3)
TARGET = CARDS["H200"].target

needs_compiler = pytest.mark.skipif(EMULATED, reason="not of what is emulated")


def settings(precision, bounded=True, need_grad=True) -> FifoSettings:
    return FifoSettings(
        0.1, 0.02, bounded, False, False, precision, 1, need_grad, "before", False, 0.5
    )


def step_job(precision, size, dim=128, which=ATTEND, card="H200", **others) -> Job:
    label = " ".join([f"B={size[0]}", *(f"{name}={value}" for name, value in others.items())])
    return Job(card, *size, dim, settings(precision, **others), STORAGE[precision], which, label)


def momentum_job(precision, kernel, dim=128, card="H200") -> MomentumJob:
    method = kernel.split("_")[0]
    wanted = MomentumSettings(0.1, 0.02, 0.07, precision, 1, method, True)
    return MomentumJob(card, 49984, dim, wanted, True, STORAGE[precision], kernel)


@functools.cache
def kernel_of(job):
    """As it is launched."""
    return compile_kernel(specialize(job.launch()), CARDS[job.card].target)


def as_triton_has_it(job):
    """The same without our fences."""
    options = ("num_warps", "num_stages", "enable_fp_fusion")
    metadata = kernel_of(job).metadata
    options = {name: getattr(metadata, name) for name in options}
    return triton.compile(source_of(specialize(job.launch())), CARDS[job.card].target, options)


#: Kernels that multiply what cp.async has brought, in which Triton 3.6 has no fence for that.
COPIED = [
    step_job("bfloat16", SMALL),
    step_job("bfloat16", LARGE, bounded=False),
    step_job("float16", SMALL, 1024, bounded=False),
    step_job("tf32", LARGE),
    step_job("bfloat16", SMALL, need_grad=False),
    momentum_job("bfloat16", "dense_statistics"),
    momentum_job("tf32", "dense_gradient"),
    step_job("bfloat16", SMALL, card="B200"),
]
#: Kernels that multiply what threads have stored: transposed, or in two parts.
STORED = [
    step_job("tf32", SMALL, bounded=False),
    step_job("float32", SMALL, need_grad=False),
    momentum_job("float32", "dense_gradient"),
]


@needs_compiler
@pytest.mark.parametrize("job", [*COPIED, *STORED], ids=str)
def test_writes_are_fenced_from_products(job):
    """That Triton 3.6 is found wrong is what shows that the check can fail."""
    used, without = kernel_of(job), as_triton_has_it(job)
    ptx = used.asm["ptx"]
    faulty = Version(triton.__version__) < Version("3.7.1")
    assert bool(missing_fences(without.asm["ptx"])) == (faulty and job in COPIED)
    assert ptx == with_fences(without.asm["ptx"])
    assert missing_fences(ptx) == []
    added = ptx.count(FENCE) - without.asm["ptx"].count(FENCE)
    if added:  # into the machine code too
        fences = [kernel.asm["sass"].count("FENCE.VIEW.ASYNC") for kernel in (used, without)]
        assert fences[0] - fences[1] == added


@needs_compiler
@pytest.mark.parametrize("job", COPIED[:2], ids=str)
def test_a_fence_that_is_taken_out_is_missed(job):
    lines = kernel_of(job).asm["ptx"].splitlines()
    wait = next(i for i, line in enumerate(lines) if "cp.async.wait_group" in line)
    fence = next(i for i in range(wait, len(lines)) if FENCE in lines[i])
    product = next(i for i in range(fence, len(lines)) if "wgmma.fence" in lines[i])
    del lines[fence]
    assert missing_fences("\n".join(lines)) == [product - 1]


WAIT, BARRIER = "cp.async.wait_group 0;", "bar.sync 0;"
BEGIN, PRODUCT = "wgmma.fence.sync.aligned;", "wgmma.mma_async.sync.aligned.m64n8k16 {%r1}, %rd1;"
LOOP, AGAIN = "$L__BB0_2:  // loop", "@%p1 bra $L__BB0_2;"


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        ([WAIT, BARRIER, BEGIN, PRODUCT], [2]),
        ([WAIT, BARRIER, FENCE, BEGIN, PRODUCT, PRODUCT, BEGIN, PRODUCT], []),
        ([WAIT, FENCE, BARRIER, "$L__tmp3:", BEGIN, PRODUCT], []),
        ([FENCE, WAIT, BEGIN, PRODUCT, WAIT, PRODUCT], [2, 5]),
        (["st.shared.b32 [%r1], %r2;", FENCE, "st.global.b32 [%rd1], %r2;", PRODUCT], []),
        ([FENCE, "@%p1 st.shared.b32 [%r1], %r2;", PRODUCT], [2]),
        ([WAIT, "fence.proxy.async.global;", f"@%p1 {FENCE}", f"// {FENCE}", PRODUCT], [4]),
        ([WAIT, "@%p1 tcgen05.mma.cta_group::1 [%r1], %rd1;"], [1]),
        # A loop, from whose end comes an unfenced write, or none.
        ([FENCE, LOOP, BEGIN, PRODUCT, WAIT, AGAIN], [2]),
        ([LOOP, WAIT, FENCE, BEGIN, PRODUCT, AGAIN], []),
        ([WAIT, FENCE, LOOP, BEGIN, PRODUCT, AGAIN], []),
        ([LOOP, BEGIN, PRODUCT, "bra $L4;", "$L3:", AGAIN, "$L4:", WAIT, "bra $L3;"], [1]),
        # One of two paths has a fence.
        ([WAIT, "@%p1 bra $L3;", FENCE, "$L3:", BEGIN, PRODUCT], [4]),
        ([WAIT, "$L1: .branchtargets $L3;", "brx.idx %r1, $L1;", FENCE, "$L3:", PRODUCT], [5]),
    ],
)
def test_where_fences_are_missing(lines, missing):
    ptx = "".join(f"\t{line}\n" for line in lines)
    assert missing_fences(ptx) == missing
    completed = with_fences(ptx).splitlines()
    assert missing_fences("\n".join(completed)) == []
    for place in missing:
        assert completed.pop(place) == f"\t{FENCE}"
    assert completed == ptx.splitlines()


def row_jobs():
    for card in ("A100", "H200"):
        for dim in (24, 300):
            yield step_job("bfloat16", SMALL, dim, PREPARE, card)
            yield step_job("tf32", SMALL, dim, COMBINE, card)
            yield momentum_job("float32", "momentum_combine", dim, card)
            yield momentum_job("float32", "gather_statistics", dim, card)


@needs_compiler
@pytest.mark.parametrize("job", list(row_jobs()), ids=str)
def test_lanes_have_equal_sums(job):
    """At widths that test_triton_compile.py leaves out."""
    ptx = kernel_of(job).asm["ptx"]
    assert "shfl.sync.bfly" in ptx
    assert lopsided(ptx) == []


@needs_compiler
def test_fused_operations_are_noticed():
    launch = step_job("bfloat16", SMALL, 24, PREPARE).launch()
    options = {"num_warps": launch.num_warps, "enable_fp_fusion": True}
    ptx = triton.compile(source_of(specialize(launch)), TARGET, options).asm["ptx"]
    assert any("fma.rn.f32" in instruction for instruction in lopsided(ptx))


ROUNDED, FREE = "mul.rn.f32 %f3, %f1, %f2;", "mul.f32 %f3, %f1, %f2;"
EXCHANGE = "shfl.sync.bfly.b32 %f4, %f3, 16, 31, -1;"
DOUBLE = [
    "mov.b64 {_, %r2}, %fd1;",
    "cvt.u32.u64 %r1, %fd1;",
    "shfl.sync.bfly.b32 %r3, %r1, 16, 31, -1;",
    "shfl.sync.bfly.b32 %r4, %r2, 16, 31, -1;",
    "cvt.u64.u32 %rd1, %r3;",
    "cvt.u64.u32 %rd2, %r4;",
    "shl.b64 %rd3, %rd2, 32;",
    "or.b64 %fd2, %rd1, %rd3;",
]


@pytest.mark.parametrize(
    ("lines", "lanes_differ"),
    [
        ([ROUNDED, EXCHANGE, "add.rn.f32 %f5, %f3, %f4;"], False),
        (["add.f32 %f3, %f1, %f2;", EXCHANGE, "add.f32 %f5, %f3, %f4;"], False),
        ([EXCHANGE, "mov.b32 %f6, %f4;", "mov.b32 %f7, %f3;", "max.f32 %f5, %f6, %f7;"], False),
        ([*DOUBLE, "add.rn.f64 %fd3, %fd1, %fd2;"], False),
        ([EXCHANGE, "selp.f32 %f5, %f1, %f4, %p1;", "mul.rn.f32 %f6, %f5, %f2;"], False),
        # Of two roundings, one may be left out by the compiler, or by the assembler.
        ([ROUNDED, EXCHANGE, "fma.rn.f32 %f5, %f1, %f2, %f4;"], True),
        ([EXCHANGE, "mov.b32 %f6, %f4;", "@%p1 fma.rn.f32 %f5, %f1, %f2, %f6;"], True),
        ([FREE, EXCHANGE, "add.f32 %f5, %f3, %f4;"], True),
        # Not of the two that were exchanged, or not symmetric.
        ([EXCHANGE, "add.rn.f32 %f5, %f1, %f4;"], True),
        ([EXCHANGE, "sub.rn.f32 %f5, %f3, %f4;"], True),
        ([*DOUBLE, "fma.rn.f64 %fd3, %fd4, %fd5, %fd2;"], True),
    ],
)
def test_which_lanes_differ(lines, lanes_differ):
    last = [lines[-1]] if lanes_differ else []
    assert lopsided("\n".join(lines)) == last
