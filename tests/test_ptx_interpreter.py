"""What the PTX interpreter computes, and what it refuses: each check on a few lines of PTX."""

import math
import struct

import numpy as np
import pytest
import torch
from card import Emulator, Kernel
from ptx.program import PtxError

HEADER = """
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1
)
.reqntid %d
{
	.reg .pred %%p<9>;
	.reg .b16 %%rs<9>;
	.reg .b32 %%r<99>;
	.reg .b64 %%rd<99>;
	mov.u32 %%r1, %%tid.x;
	shl.b32 %%r2, %%r1, 2;
	mov.b32 %%r3, global_smem;
	add.s32 %%r4, %%r3, %%r2;
	cvt.u64.u32 %%rd3, %%r2;
	ld.param.b64 %%rd1, [k_param_0];
	ld.param.b64 %%rd2, [k_param_1];
	add.s64 %%rd4, %%rd1, %%rd3;
	add.s64 %%rd5, %%rd2, %%rd3;
	setp.eq.b32 %%p1, %%r1, 0;
	xor.b32 %%r5, %%r4, 128;
	mov.u32 %%r6, %%ctaid.x;
%s
	ret;
}
"""


def kernel(body, *tensors, grid=1, threads=64, dependent=False):
    """``%r1`` is the thread, ``%r4`` its word of shared memory, ``%r5`` that of one in the other
    warp, ``%rd4`` and ``%rd5`` its words of two tensors."""
    lines = "\n".join(f"\t{line.strip()};" for line in body.split(";") if line.strip())
    lines = lines.replace(":", ":\n").replace("shared:\n:\n", "shared::")
    return Kernel(HEADER % (threads, lines), 1024, (grid,), tensors, dependent)


def run(body, *tensors, late=False, seed=0, empty=(), **launch):
    emulator = Emulator(late=late, seed=seed)
    for tensor in empty:
        emulator.unwritten(tensor)
    given = [*tensors, torch.zeros(64, dtype=torch.int32)][:2]
    emulator.launch([kernel(body, *given, **launch)])
    return tensors[0]


def words(count=64):
    return torch.arange(count, dtype=torch.int32) + 1000


STORE, LOAD = "st.shared.b32 [%r4], %r1;", "ld.shared.b32 %r7, [%r4];"
OTHER, BARRIER = "ld.shared.b32 %r7, [%r5];", "bar.sync 0;"
OUT = "st.global.b32 [%rd4], %r7;"
COPY = "cp.async.ca.shared.global [%r4], [%rd5], 0x4, 4;"
COMMIT, WAIT = "cp.async.commit_group;", "cp.async.wait_group 0;"

ALLOWED = {
    "a warp's own words": STORE + LOAD + OUT,
    "another warp's after a barrier": STORE + BARRIER + OTHER + OUT,
    "several warps store one value": "mov.b32 %r7, 5; st.shared.b32 [%r3], %r7;" + OUT,
    "a copy that was waited for": COPY + COMMIT + WAIT + LOAD + OUT,
    "one of two copies": COPY + COMMIT + COPY.replace("%r4]", "%r4+512]") + COMMIT
    + "cp.async.wait_group 1;" + LOAD + OUT,
    "a barrier that one warp reaches by another way":
    "shr.u32 %r8, %r1, 5; setp.eq.b32 %p2, %r8, 1; mov.b32 %r7, 1; @%p2 bra L1; mov.b32 %r7, 2; L1:"
    + BARRIER + OUT,
}  # fmt: skip

FAULTS = {
    "unknown instruction": ("vote.sync.any.pred %p2, %p1, -1;", "unknown instruction"),
    "unknown modifier": ("add.sat.s32 %r7, %r1, %r1;", "unknown instruction"),
    "unknown operand": ("mov.u32 %r7, %laneid;", "unknown operand"),
    "a register nobody wrote": ("add.s32 %r7, %r8, 1;", "reads %r8, which nobody has written"),
    "division by zero": ("sub.s32 %r7, %r1, 5; rem.s32 %r8, %r1, %r7;", "divides by zero"),
    "shared memory nobody wrote": (LOAD, "reads what nobody has written"),
    "outside of shared memory": (STORE.replace("%r4", "%r4+1024"), "outside of 1024 bytes"),
    "without the base of shared memory": (STORE.replace("%r4", "%r2"), "outside of 1024 bytes"),
    "an odd address": (STORE.replace("%r4", "%r4+2"), "no multiple of 4 bytes"),
    "outside of a tensor": (OUT.replace("%rd4", "%rd4+4").replace("%r7", "%r1"),
                            r"byte 256 of pointer 0 is outside"),
    "before a tensor": ("ld.global.b32 %r7, [%rd4+-4];", r"byte -4 of pointer 0 is outside"),
    "a null pointer": ("ld.global.b32 %r7, [%rd3];", "is in no tensor"),
    "read before a barrier": (STORE + OTHER, "race: reads what another warp has written"),
    "written before a barrier": (STORE + BARRIER + OTHER + STORE,
                                 "race: writes what another warp has read"),
    "two warps store": ("st.shared.b32 [%r3], %r1;", "race: two warps|different values"),
    "two lanes store": ("and.b32 %r8, %r4, -128; st.shared.b32 [%r8], %r1;", "different values"),
    "two lanes store to a tensor": ("and.b64 %rd6, %rd3, 128; add.s64 %rd6, %rd6, %rd1;"
                                    "st.global.b32 [%rd6], %r1;", "different values"),
    "a copy not waited for": (COPY + COMMIT + LOAD, "cp.async copies and nothing has waited for"),
    "a copy not committed": (COPY + WAIT + LOAD, "cp.async copies and nothing has waited for"),
    "the newest copy": (COPY + COMMIT + "cp.async.wait_group 1;" + LOAD, "nothing has waited for"),
    "another warp's copy": (COPY + COMMIT + WAIT + OTHER, "race: reads"),
    "a copy over what is read": (STORE + BARRIER + OTHER + COPY, "race: writes"),
    "a store over a copy": (COPY + STORE, "cp.async copies and nothing has waited for"),
    "half of a warp": ("@%p1 bra L1; shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1; L1: mov.b32 %r8, 0;",
                       "not all lanes"),
    "half of a warp at a barrier": ("@%p1 bra L1;" + BARRIER + "L1: mov.b32 %r8, 0;",
                                    "not all lanes"),
    "two barriers": ("shr.u32 %r8, %r1, 5; setp.eq.b32 %p2, %r8, 1; @%p2 bra L1;" + BARRIER
                     + "bra L2; L1:" + BARRIER + "L2: mov.b32 %r8, 0;", "at a different barrier"),
    "a predicated end": ("@%p1 ret;", "unknown predicate"),
    "a warp that has ended": (
        "shr.u32 %r8, %r1, 5; setp.eq.b32 %p2, %r8, 1; @%p2 bra L1;" + BARRIER + "bra L2; L1: ret;"
        "L2: mov.b32 %r8, 0;", "that have ended"),
    "an atomic beside a store": (
        "@%p1 st.global.b32 [%rd1], %r1; setp.eq.b32 %p2, %r1, 40;"
        "@%p2 red.global.gpu.relaxed.add.u32 [%rd1], %r1;", "race: two warps"),
    "a field beyond a register": ("bfe.u32 %r7, %r1, 20, 16;", "unknown operands"),
    "a part of an element": ("ld.global.b16 %rs1, [%rd4];", "a part of 4"),
}  # fmt: skip


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("body", ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed(body, late):
    run(body, words(), words(), late=late)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("body", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_not(body, message, late):
    with pytest.raises(PtxError, match=message):
        run(body, words(), words(), late=late)


def test_a_fault_says_where_it_is():
    with pytest.raises(PtxError, match=r"k, block \(0, 0, 0\), PTX line \d+ .*ld\.shared\.b32 %r7"):
        run(LOAD, words())


def test_copies_bring_what_is_there():
    found = run(COPY + COMMIT + WAIT + BARRIER + OTHER + OUT, torch.zeros(64).int(), words())
    assert found.tolist() == [1000 + (i ^ 32) for i in range(64)]


def test_elements_that_are_not_a_tensor_s():
    larger = torch.zeros(128, dtype=torch.int32)
    with pytest.raises(PtxError, match="byte 4 of pointer 0 is outside"):
        run("ld.global.b32 %r7, [%rd4];", larger[::2])
    assert run("st.global.b32 [%rd4], %r1;", larger[64:])[3] == 3
    assert not larger[:64].any()


def test_elements_that_nobody_has_written():
    source = torch.empty(64, dtype=torch.int32)
    with pytest.raises(PtxError, match="reads what nobody has written"):
        run("ld.global.b32 %r7, [%rd4];", source, empty=[source])
    run("st.global.b32 [%rd4], %r1; ld.global.b32 %r7, [%rd4];", source, empty=[source])
    emulator = Emulator()
    emulator.unwritten(source)
    first = kernel("@%p1 st.global.b32 [%rd4], %r1;", source, words())
    emulator.launch([first])
    with pytest.raises(PtxError, match="returns elements"):
        emulator.check_written([source])


#: Each block stores a word; the last to count itself reads all of them.
COUNT = """
    @!%p1 bra L1; add.s64 %rd6, %rd2, 128;
    atom.global.gpu.acq_rel.add.u32 %r8, [%rd6], 1; st.shared.b32 [%r3], %r8; L1:
    bar.sync 0; ld.shared.b32 %r8, [%r3]; setp.ne.b32 %p2, %r8, 3; @%p2 bra L2;
    setp.lt.s32 %p3, %r1, 4; @%p3 ld.global.b32 %r7, [%rd4]; @%p3 st.global.b32 [%rd5], %r7; L2:
    mov.b32 %r9, 0
"""
PLACE = "mul.wide.u32 %rd7, %r6, 4; add.s64 %rd7, %rd7, %rd1; setp.eq.b32 %p4, %r1, 33;"
PUBLISH = PLACE + "@%p4 st.global.b32 [%rd7], %r6;" + BARRIER + COUNT


@pytest.mark.parametrize("seed", range(4))
def test_what_is_released_may_be_read(seed):
    result = torch.zeros(64, dtype=torch.int32)
    run(PUBLISH, torch.zeros(64).int(), result, grid=4, seed=seed)
    assert result[:4].tolist() == [0, 1, 2, 3]
    assert result[32] == 4


def test_what_comes_after_the_release_is_not_released():
    """By the thread that releases, before and after the next barrier."""
    store = "@%p1 st.global.b32 [%rd7], %r6;"
    for place in ("L1:\n    bar.sync 0;", "ld.shared.b32 %r8, [%r3];"):
        body = PLACE + COUNT.replace(
            place, place.replace("L1:", f"{store} L1:") if "L1" in place else store + place
        )
        assert store in body
        with pytest.raises(PtxError, match="race: reads what another block"):
            run(body, torch.zeros(64).int(), torch.zeros(64).int(), grid=4)


def test_lanes_of_a_block_of_one_warp():
    """They too are ordered by a barrier only, of the warp or of the block."""
    other = OTHER.replace("%r5", "%r9")
    prefix = "xor.b32 %r9, %r4, 4;" + STORE
    for between in ("bar.warp.sync -1;", BARRIER):
        found = run(prefix + between + other + OUT, words(32), threads=32)
        assert found.tolist() == [i ^ 1 for i in range(32)]
    with pytest.raises(PtxError, match="race: reads"):
        run(prefix + other, words(32), threads=32)


@pytest.mark.parametrize(
    ("was", "spoilt"),
    [
        ("acq_rel", "relaxed"),
        (BARRIER + COUNT, COUNT),  # another thread's store is not released
        # Read by threads that do not know of it.
        ("bar.sync 0; ld.shared.b32 %r8, [%r3]; setp.ne.b32 %p2, %r8, 3; @%p2 bra L2;", ""),
    ],
    ids=["not released", "not before the release", "not acquired"],
)
def test_what_is_not_released_is_a_race(was, spoilt):
    body = PUBLISH.replace(was, spoilt)
    assert body != PUBLISH
    with pytest.raises(PtxError, match=r"race: (reads|writes) what another block"):
        run(body, torch.zeros(64).int(), torch.zeros(64).int(), grid=4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@%p1 st.global.b32 [%rd4], %r1;", "race: writes what another block"),
        ("ld.global.b32 %r7, [%rd4];" + OUT, "race: reads what another block"),
        ("@%p1 red.global.gpu.relaxed.add.u32 [%rd4], %r1; @%p1 ld.global.b32 %r7, [%rd4];",
         "race: "),
    ],
)  # fmt: skip
def test_blocks_that_race(body, message):
    with pytest.raises(PtxError, match=message):
        run(body, words(), grid=2)


def test_blocks_that_count():
    found = run("@%p1 red.global.gpu.relaxed.add.u32 [%rd4], 5;", words(), grid=7)
    assert found[0] == 1035


def test_a_dependent_launch_waits():
    one, two = words(), words()
    first = kernel("st.global.b32 [%rd4], %r1;", one, two)
    load = "ld.global.b32 %r7, [%rd4]; st.global.b32 [%rd5], %r7;"
    for body, refused in ((load, True), ("griddepcontrol.wait;" + load, False)):
        second = kernel(body, one, two, dependent=True)
        if refused:
            with pytest.raises(PtxError, match="the kernel before may still be running"):
                Emulator().launch([first, second])
        else:
            Emulator().launch([first, second])
    with pytest.raises(PtxError, match="ends before"):
        Emulator().launch([first, kernel("mov.b32 %r7, 0;", two, two, dependent=True)])
    # One that lets its successor begin before it has waited itself.
    early = kernel(
        "griddepcontrol.launch_dependents; griddepcontrol.wait;", two, two, dependent=True
    )
    with pytest.raises(PtxError, match="the kernel before may still be running"):
        Emulator().launch([first, early, kernel(load, one, two, dependent=True)])


def test_threads_that_loop_differently_meet_again():
    body = """
        mov.b32 %r7, 0; mov.b32 %r8, %r1; L1: setp.lt.s32 %p2, %r8, 1; @%p2 bra L2;
        add.s32 %r7, %r7, %r8; sub.s32 %r8, %r8, 3; bra L1; L2:
        shfl.sync.idx.b32 %r9, %r7, 31, 31, -1; add.s32 %r7, %r7, %r9
    """
    sums = [sum(range(i, 0, -3)) for i in range(64)]
    found = run(body + ";" + OUT, words())
    assert found.tolist() == [sums[i] + sums[i | 31] for i in range(64)]


def bits(value):
    return struct.unpack("<i", struct.pack("<f", value))[0]


NAN, INF = bits(math.nan), bits(math.inf)


@pytest.mark.parametrize(
    ("instruction", "a", "b", "expected"),
    [
        ("sub.s32 %r7, %r8, %r9", 3, 5, -2),
        ("mul.lo.s32 %r7, %r8, %r9", 1 << 20, 1 << 12, 0),
        ("mad.lo.s32 %r7, %r8, -3, %r9", 5, 7, -8),
        ("div.s32 %r7, %r8, %r9", -7, 2, -3),
        ("rem.s32 %r7, %r8, %r9", -7, 2, -1),
        ("rem.u32 %r7, %r8, %r9", -7, 4, 1),
        ("shl.b32 %r7, %r8, %r9", -1, 32, 0),
        ("shr.u32 %r7, %r8, %r9", -1, 33, 0),
        ("shr.s32 %r7, %r8, %r9", -5, 40, -1),
        ("bfe.u32 %r7, %r8, 4, 3", 0x75, 0, 7),
        ("bfe.s32 %r7, %r8, 4, 3", 0x75, 0, -1),
        ("min.s32 %r7, %r8, %r9", -1, 1, -1),
        ("max.u32 %r7, %r8, %r9", -1, 1, -1),
        ("neg.s32 %r7, %r8", 4, 0, -4),
        ("not.b32 %r7, %r8", 5, 0, -6),
        ("prmt.b32 %r7, %r8, %r9, 0x3714U", 0x33221100, 0x77665544, 0x33771144),
        ("add.f32 %r7, %r8, %r9", bits(1.5), bits(2.25), bits(3.75)),
        ("fma.rn.f32 %r7, %r8, %r8, %r9", bits(1 + 2.0**-23), bits(-1.0), bits(2.0**-22)),
        ("div.full.f32 %r7, %r8, %r9", bits(1.0), bits(3.0), bits(1 / 3)),
        ("min.f32 %r7, %r8, %r9", NAN, bits(2.0), bits(2.0)),
        ("sub.f32 %r7, %r8, %r9", INF, INF, 0x7FFFFFFF),
        ("abs.f32 %r7, %r8", bits(-2.0), 0, bits(2.0)),
        ("ex2.approx.ftz.f32 %r7, %r8", bits(-3.0), 0, bits(0.125)),
        ("ex2.approx.ftz.f32 %r7, %r8", bits(-130.0), 0, 0),
        ("sqrt.rn.f32 %r7, %r8", bits(2.0), 0, bits(2**0.5)),
        ("cvt.rna.tf32.f32 %r7, %r8", 0x3F801000, 0, 0x3F802000),
        ("cvt.rn.bf16x2.f32 %r7, %r8, %r9", bits(1.0), bits(2.0), 0x3F804000),
        ("cvt.rn.f16x2.f32 %r7, %r8, %r9", bits(1.0), bits(-2.0), 0x3C00C000),
        ("cvt.rn.f32.s32 %r7, %r8", -3, 0, bits(-3.0)),
        ("setp.ne.f32 %p2, %r8, %r9; selp.b32 %r7, 1, 0, %p2", NAN, NAN, 0),
        ("setp.geu.f32 %p2, %r8, %r9; selp.b32 %r7, 1, 0, %p2", NAN, 0, 1),
        ("setp.num.f32 %p2, %r8, %r9; selp.b32 %r7, 1, 0, %p2", 0, NAN, 0),
        ("setp.lt.u32 %p2, %r8, %r9; selp.b32 %r7, 1, 0, %p2", -1, 1, 0),
        ("mul.wide.s32 %rd8, %r8, %r9; shr.u64 %rd8, %rd8, 32; cvt.u32.u64 %r7, %rd8", -1, 1, -1),
        ("cvt.s64.s32 %rd8, %r8; mov.b64 {%r10, %r7}, %rd8", -2, 0, -1),
        ("mov.b32 {%rs1, %rs2}, %r8; mov.b32 %r7, {%rs2, %rs1}", 0x12345678, 0, 0x56781234),
        ("redux.sync.add.s32 %r7, %r8, %r9", 3, -1, 96),
        ("shfl.sync.bfly.b32 %r7, %r1, 5, 31, -1; sub.s32 %r7, %r7, %r1", 0, 0, None),
    ],
)
def test_what_instructions_compute(instruction, a, b, expected):
    found = run(f"mov.b32 %r8, {a}; mov.b32 %r9, {b}; {instruction};" + OUT, words())
    wanted = [expected] * 64 if expected is not None else [(i ^ 5) - i for i in range(64)]
    assert found.tolist() == [np.int32(np.uint32(w & 0xFFFFFFFF)).item() for w in wanted]
