"""Products that machine code does not wait for are found: in snippets, in kernels that one edit has
spoilt, and in what a faulty assembler makes. machine_code.py looks for them in every kernel."""

# ruff: noqa: E402 (imports after a skip)

import re

import pytest

triton = pytest.importorskip("triton")
import triton.language as tl
from event_order import unknown_order
from hgmma import touched_too_early
from machine_code import cuobjdump
from packaging.version import Version
from test_triton_ptx import COPIED, STORED, TARGET, kernel_of, needs_compiler
from triton.compiler import ASTSource


def places(found: list[str]) -> list[int]:
    return [int(line.split()[0], 16) // 16 for line in found]


def sass_of(*instructions: str) -> str:
    return "".join(f"        /*{16 * i:04x}*/   {one} ;\n" for i, one in enumerate(instructions))


#: A in R6 to R9 or R10 to R13, accumulator in R16 to R23.
PRODUCT = "HGMMA.64x16x16.F32.BF16 R16, R6, gdesc[UR4].tnspB, R16"
OTHER = "HGMMA.64x16x8.F32.TF32 R16, R10, gdesc[UR8], R16"
FIRST = "HGMMA.64x16x16.F32 R16, gdesc[UR4], RZ, !UPT"
LAST, OTHER_LAST, FIRST_LAST = f"{PRODUCT}, gsb0", f"{OTHER}, gsb0", f"{FIRST}, gsb0"
WAIT, WAIT_BUT_ONE = "WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"
WRITE, WRITE_OTHER = "MOV R6, RZ", "MOV R13, RZ"


@pytest.mark.parametrize(
    ("instructions", "early"),
    [
        ([LAST, WAIT, WRITE], []),
        ([LAST, WRITE, WAIT], [1]),
        ([LAST, f"@!P0 {WRITE}", WAIT], [1]),
        ([PRODUCT, OTHER_LAST, WAIT, WRITE], []),
        ([PRODUCT, WRITE, OTHER_LAST, WAIT], [1]),
        ([PRODUCT, WAIT, WRITE], [2]),  # of no group
        # A wait for all groups but one.
        ([LAST, WAIT_BUT_ONE, WRITE], [2]),
        ([LAST, OTHER_LAST, WAIT_BUT_ONE, WRITE], []),
        ([LAST, OTHER_LAST, WAIT_BUT_ONE, WRITE_OTHER], [3]),
        ([LAST, OTHER_LAST, LAST, WAIT_BUT_ONE, WRITE], [4]),
        # The accumulator: not even read, but by products of the same shape.
        ([LAST, "FADD R0, R6, R9", WAIT, "FADD R0, R16, R23"], []),
        ([FIRST_LAST, "FADD R0, R1, -R23", WAIT], [1]),
        ([FIRST_LAST, "MOV R16, RZ", "MOV R15, RZ", "MOV R24, RZ", WAIT], [1]),
        ([LAST, FIRST, OTHER_LAST, WAIT], []),
        ([LAST, "HGMMA.64x16x16.F32.BF16 R24, R20, gdesc[UR4], R24"], [1]),
        ([LAST, "HGMMA.64x8x16.F32.BF16 R20, gdesc[UR4], R20"], [1]),
        ([LAST, "HGMMA.64x16x16.F32.BF16 R8, gdesc[UR4], RZ, !UPT"], [1]),
        (["HGMMA.64x32x16.F16 R16, gdesc[UR4], R16", "MOV R24, RZ", "MOV R23, RZ"], [2]),
        # One of two paths waits, or both.
        ([LAST, "@P0 BRA 0x30", WAIT, WRITE, "EXIT"], [3]),
        ([LAST, "BRA.U UP0, 0x30", WAIT, WRITE, "EXIT"], [3]),
        ([LAST, "BRA 0x30", WRITE, WAIT, "EXIT"], []),
        ([LAST, "@P0 BRA 0x40", WAIT, "BRA 0x50", WAIT, WRITE, "EXIT"], []),
        ([LAST, "@P0 EXIT", WAIT, WRITE], []),
        ([LAST, "BSSY B0, 0x50", "@P0 BRA 0x40", WAIT, "BSYNC B0", WRITE], [5]),
        ([LAST, "@P0 BRA 0x30", OTHER_LAST, WAIT_BUT_ONE, WRITE, "EXIT"], [4]),
        # A loop.
        ([WRITE, LAST, "@P0 BRA 0x0", WAIT, "EXIT"], [0]),
        ([WRITE, LAST, WAIT, "@P0 BRA 0x0", "EXIT"], []),
        ([WRITE, LAST, WAIT_BUT_ONE, WRITE_OTHER, OTHER_LAST, WAIT_BUT_ONE, "@P0 BRA 0x0"], []),
        ([WRITE, LAST, WRITE_OTHER, WAIT_BUT_ONE, OTHER_LAST, WAIT_BUT_ONE, "@P0 BRA 0x0"], [2]),
    ],
)
def test_what_is_touched_too_early(instructions, early):
    assert places(touched_too_early(sass_of(*instructions))) == early


@pytest.mark.parametrize(
    ("instruction", "early"),
    [
        ("LDS.128 R4, [R0+UR4]", True),
        ("LDS.64 R4, [R0+UR4]", False),
        ("LDSM.16.M88.4 R4, [R0]", True),
        ("LDSM.16.M88.2 R4, [R0]", False),
        ("@P0 LDG.E.64 R8, desc[UR4][R2.64]", True),
        ("LDC.64 R4, c[0x0][R6+0x210]", False),
        ("IMAD.WIDE.U32 R8, P1, R0, R1, R2", True),
        ("IMAD.WIDE R4, R6, R7, R8", False),
        ("CS2R R8, SRZ", True),
        ("DADD R8, R0, R2", True),
        ("LOP3.LUT P0, R9, R0, R1, RZ, 0xc0, !PT", True),
        ("SHFL.BFLY PT, R9, R0, 0x1, 0x1f", True),
        ("FSETP.NAN.AND P0, PT, R6, R6, PT", False),
        ("UIADD3 UR6, UR6, 0x1, URZ", False),
        ("R2UR UR6, R6", False),
        ("STS.128 [R6], R12", False),
        # Of the accumulator, reading is enough.
        ("STS.128 [R0], R13", True),
        ("STS.64 [R0], R14", False),
        ("STSM.16.M88.4 [R0], R13", True),
        ("LDG.E.128 R0, desc[UR4][R15.64+0x10]", True),
        ("IMAD.WIDE R0, R2, R3, R15", True),
        ("IMAD.WIDE R0, R2, R15, R4", False),
        ("ISETP.GE.AND P0, PT, R16, R0, PT", True),
    ],
)
def test_how_many_registers_an_instruction_touches(instruction, early):
    assert bool(touched_too_early(sass_of(LAST, instruction, WAIT))) == early


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("BRX R2 -0x10", "control flow"),
        ("CALL.REL.NOINC 0x10", "control flow"),
        ("WARPSYNC.COLLECTIVE R0, 0x10", "control flow"),
        ("BSSY B0, 0x10", "control flow"),
        (f"@P0 {PRODUCT}", "product"),
        ("QGMMA.64x16x32.F32.E4M3.E4M3 R16, R6, gdesc[UR4], R16", "product"),
        ("HGMMA.64x16x16.F32 R16, gdesc[UR4], R24", "product"),
        (f"@P0 {WAIT}", "wait"),
    ],
)
def test_what_is_unknown_is_an_error(instruction, kind):
    with pytest.raises(ValueError, match=f"unknown {kind}"):
        touched_too_early(sass_of(instruction, "EXIT"))


#: A loop that brings tiles by cp.async, and its iteration and end in machine code.
PTX = """
$L__BB0_1:                              // the loop
	cp.async.wait_group 	0;
	bar.sync 	0;
	fence.proxy.async.shared::cta;
	wgmma.fence.sync.aligned;
	wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%r1, %r2}, %rd1, %rd2, 1, 1, 1;
	wgmma.commit_group.sync.aligned;
	wgmma.wait_group.sync.aligned 	0;
	bar.sync 	0;
	@%p2 st.shared.b32 [ %r3 + 0 ], %r4;
	cp.async.cg.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 0x10, %r6;
	cp.async.commit_group;
	@%p1 bra 	$L__BB0_1;
	ret;
"""
COPY, BARRIER = "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64], !P3", "BAR.SYNC.DEFER_BLOCKING 0x0"
BEGIN = ["DEPBAR.LE SB0, 0x0", BARRIER, "FENCE.VIEW.ASYNC.S", "WARPGROUP.ARRIVE", FIRST_LAST]
STORE, END = "@P2 STS [R1], R2", [COPY, "LDGDEPBAR"]
ITERATION = [*BEGIN, WAIT, BARRIER, STORE, *END]


@pytest.mark.parametrize(
    ("instructions", "unknown"),
    [
        ([*ITERATION, "@P1 BRA 0x0", "EXIT"], []),
        ([*ITERATION, "@!P1 BRA 0x160", *ITERATION, "@P1 BRA 0x0", "EXIT"], []),  # unrolled
        ([*BEGIN, WAIT, BARRIER, "@P2 BRA 0x90", STORE[4:], *END, "@P1 BRA 0x0", "EXIT"], []),
        ([*BEGIN, WAIT, "NOP", STORE, *END, "EXIT"], [7, 8]),
        ([*BEGIN, WAIT, COPY, BARRIER, "LDGDEPBAR", "EXIT"], [6]),
        ([*BEGIN, BARRIER, WAIT, STORE, *END, "EXIT"], [5]),
        ([*BEGIN, WAIT_BUT_ONE, BARRIER, STORE, *END, "EXIT"], [5]),
        ([*BEGIN, WAIT, "@P0 BRA 0x80", BARRIER, *END, "EXIT"], [8]),
        ([*BEGIN, WAIT, f"@P0 {BARRIER}", *END, "EXIT"], [7]),
        # The second iteration begins without the wait for copies.
        ([*ITERATION, "@P1 BRA 0x10", "EXIT"], [1]),
    ],
)
def test_which_orders_are_unknown(instructions, unknown):
    assert places(unknown_order(sass_of(*instructions), PTX)) == unknown


def test_events_that_are_unknown_are_an_error():
    for other in ("BAR.ARV 0x1, 0x80", "SYNCS.ARRIVE.TRANS64 RZ, [UR4], R2"):
        with pytest.raises(ValueError, match="unknown event"):
            unknown_order(sass_of(other), PTX)
    with pytest.raises(ValueError, match="unknown event"):
        unknown_order(sass_of("EXIT"), PTX.replace("bar.sync", "bar.arrive"))


def disassembled(kernel) -> tuple[str, str]:
    return cuobjdump("--dump-sass", kernel.asm["cubin"]), kernel.asm["ptx"]


def spoilt(sass):
    """The code with one edit, whatever it may be, and what should find that."""
    wait = r"/\*(\w+)\*/\s+WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d+)"
    lines, a = sass.splitlines(), None
    for place, line in enumerate(lines):
        if found := re.search(r"HGMMA\S+ R\d+, R(\d+), gdesc", line):
            a = int(found[1]) + 3
        if found := re.search(wait, line):
            more = line.replace(f"gsb0, 0x{found[2]}", f"gsb0, 0x{int(found[2]) + 1}")
            edits = [(re.sub(r"WARP[^;]*", "NOP ", line), True, True), (more, True, True)]
            if a is not None:
                write = f"        /*{int(found[1], 16) - 8:04x}*/   MOV R{a}, RZ ;\n"
                edits.append((write + line, True, False))
                a = None
        elif "BAR.SYNC" in line:
            edits = [(re.sub(r"BAR[^;]*", "NOP ", line), False, True)]
        else:
            edits = []
        for edit, touched, unknown in edits:
            yield "\n".join([*lines[:place], edit, *lines[place + 1 :]]), touched, unknown


@needs_compiler
@pytest.mark.parametrize("job", [COPIED[0], STORED[0]], ids=str)
def test_one_edit_is_found(job):
    sass, ptx = disassembled(kernel_of(job))
    found = [
        (bool(touched_too_early(edit)), bool(unknown_order(edit, ptx))) == (touched, unknown)
        for edit, touched, unknown in spoilt(sass)
    ]
    assert found == [True] * len(found)
    assert len(found) > 10


@triton.jit
def _multiply(a, b, c, size):
    """A becomes bfloat16 in registers. Triton leaves its products pending over an iteration."""
    rows, columns = tl.arange(0, 64)[:, None], tl.arange(0, 64)[None, :]
    total = tl.zeros((64, 64), tl.float32)
    for start in range(0, size, 64):
        left = tl.load(a + rows * size + (start + columns))
        right = tl.load(b + (start + rows) * 64 + columns)
        total = tl.dot(left.to(tl.bfloat16), right, total)
    tl.store(c + rows * 64 + columns, total)


@needs_compiler
def test_a_faulty_assembler_is_found():
    """Triton 3.6 has ptxas 12.8; from 3.9 on a Hopper's is 13.4, in which the fault is mended."""
    signature = {"a": "*fp32", "b": "*bf16", "c": "*fp32", "size": "i32"}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(4)}
    source = ASTSource(_multiply, signature, {}, aligned)
    options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    kernel = triton.compile(source, TARGET, options)
    sass, ptx = disassembled(kernel)
    faulty = Version(triton.__version__) < Version("3.9")
    assert bool(touched_too_early(sass)) == faulty
    assert unknown_order(sass, ptx) == []
