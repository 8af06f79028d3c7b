"""Registers that sm_90 machine code uses before an asynchronous product is done with them.

HGMMA (PTX: wgmma.mma_async) reads A, where that is in registers, and writes its accumulator until a
``WARPGROUP.DEPBAR`` that completes it; so the PTX ISA says of wgmma.wait_group. ptxas 12.8 and 12.9
are known to reuse A's registers before (triton#11781).

What NVIDIA does not document, and what speaks for it in the code of ptxas 12.8 and 13.4:

- ``gsb0`` on an HGMMA ends a group, and ``WARPGROUP.DEPBAR.LE gsb0, N`` waits for all groups but
  the newest N: they are where PTX has wgmma.commit_group and wgmma.wait_group.
- ``WARPGROUP.ARRIVE`` waits for no product: it is where PTX has wgmma.fence.
- Descriptors are read from uniform registers at issue, so these are left out: no HGMMA sets a
  scoreboard that could guard them, and often the next instruction writes them, a cycle later.
- A may be read by others meanwhile: both assemblers let them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Instruction(NamedTuple):
    address: int
    predicate: str  # such as "!P0", or nothing
    text: str

    @property
    def operands(self) -> list[str]:
        return self.text.partition(" ")[2].split(", ")


_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w)\s+)?([^;]*?)(, gsb0)?\s*;")


def parse(sass: str) -> list[Instruction]:
    """``cuobjdump --dump-sass`` of one kernel. A gsb0 is an instruction of its own here."""
    if sass.count("Function :") > 1:
        raise ValueError("more than one kernel")
    code = []
    for found in filter(None, map(_LINE.match, sass.splitlines())):
        address, predicate, text, ends = found.groups("")
        code.append(Instruction(int(address, 16), predicate, text))
        if ends:
            code.append(Instruction(int(address, 16), predicate, "gsb0"))
    return code


#: CUDA Binary Utilities, control instructions of Hopper: those that do more than go on.
_UNKNOWN = re.compile(r"(BMOV|BPT|BREAK|BRXU?|CALL|JMP|JMXU?|KILL|RET|RPCMOV|RTT|WARPSYNC)\b")


def successors(code: Sequence[Instruction]) -> list[list[int]]:
    places = {one.address: place for place, one in reversed([*enumerate(code)])}
    found = []
    for place, (_, predicate, text) in enumerate(code):
        operands, following = code[place].operands, [place + 1] * (place + 1 < len(code))
        if re.match(r"BRA\b", text):  # BRA.U UP0, 0x10 has its condition among the operands
            conditional = predicate or len(operands) > 1
            following = [places[int(operands[-1], 16)]] + following * bool(conditional)
        elif re.match(r"EXIT\b", text):
            following *= bool(predicate)
        elif _UNKNOWN.match(text) or (
            # Threads are to meet at BSSY's target: by a BSYNC that goes on there.
            re.match(r"BSSY\b", text)
            and code[places[int(operands[1], 16)] - 1].text != f"BSYNC {operands[0]}"
        ):
            raise ValueError(f"unknown control flow: {text}")
        found.append(following)
    return found


_PRODUCT = re.compile(
    r"HGMMA\.64x(\d+)x\d+\.F(16|32)\S* R(\d+), (?:R(\d+), )?gdesc\S+, (?:RZ|R\3)\b(?:, !?UP\w)?"
)
#: Instructions whose result, or the value that they store, is in four registers, or in two.
_FOUR = re.compile(r"(LD|ST)SM\S*\.4|\w+MMA\b|\S+\.128\b")
_TWO = re.compile(r"(LD|ST)SM\S*\.2|D(?!EPBAR)|CS2R(?!\.32)|(F2I|I2F)\.\S*64|\S+\.(64|WIDE|F64)\b")


def registers(one: Instruction) -> tuple[list[range], list[range]]:
    """Those that it writes and those that it reads; of a product, the accumulator and A.

    For a million instructions of both assemblers they are what nvdisasm --print-life-ranges marks.
    """
    if re.match(r"\wGMMA", one.text):
        product = _PRODUCT.fullmatch(one.text)
        if product is None or one.predicate:
            raise ValueError(f"unknown product: {one.text}")
        columns, bits, first, a = (int(group or 0) for group in product.groups())
        # 128 threads share 64 rows: of the accumulator's columns, and of 32 bytes of A.
        accumulator = range(first, first + columns * bits // 64)
        return [accumulator], [range(a, a + 4)] if product[4] else []
    width = 4 if _FOUR.match(one.text) else 2 if _TWO.match(one.text) else 1
    written, read = [], []
    operands = [each for each in one.operands if not re.fullmatch(r"!?U?P[T\d]|PR", each)]
    for place, operand in enumerate(operands):
        for found in re.finditer(r"(?<![A-Z])R(\d+)(\.64)?", operand):
            factor = ".WIDE" in one.text and 0 < place < len(operands) - 1
            count = 2 if found[2] else 1 if factor or "[" in operand else width
            result = place == 0 and operand == found[0] and not re.match(r"\w+SETP|R2P", one.text)
            (written if result else read).append(range(int(found[1]), int(found[1]) + count))
    return written, read


#: A's registers and accumulators (which, tells the flag) of products that may be pending: how many
#: groups have ended since, their own included.
Pending = dict[tuple[range, bool], int]


def _left(one: Instruction, pending: Pending) -> Pending:
    """What may be pending after an instruction."""
    if one.text == "gsb0":
        # No DEPBAR leaves as many as 99.
        return {key: min(age + 1, 99) for key, age in pending.items()}
    if one.text.startswith("HGMMA"):
        accumulators, a = registers(one)
        return pending | {(some, some in accumulators): 0 for some in (*accumulators, *a)}
    if one.text.startswith("WARPGROUP.DEPBAR.LE gsb0, ") and not one.predicate:
        return {key: age for key, age in pending.items() if age <= int(one.operands[1], 16)}
    if one.text.startswith("WARPGROUP") and one.text != "WARPGROUP.ARRIVE":
        raise ValueError(f"unknown wait: {one.text}")
    return pending


def _touches(one: Instruction, pending: Pending) -> bool:
    written, read = registers(one)
    # Products go on with each other's accumulator, and may read the same A.
    chained = written if one.text.startswith("HGMMA") else []
    return any(
        some.start < register.stop and register.start < some.stop
        for register, accumulator in pending
        for some in ((*written, *read) if accumulator else written)
        if not (accumulator and some == register and some in chained)
    )


def touched_too_early(sass: str) -> list[str]:
    """Instructions that on some path write A, or write or read the accumulator, of a product that
    may not be complete."""
    code = parse(sass)
    following = successors(code)
    before: dict[int, Pending] = {0: {}}
    rest = [0]
    while rest:
        place = rest.pop()
        left = _left(code[place], before[place])
        for after in following[place]:
            # Where paths meet, the one on which fewer groups have ended counts.
            known = before.get(after, {})
            joined = known | {key: min(age, known.get(key, age)) for key, age in left.items()}
            if joined != before.get(after):
                before[after] = joined
                rest.append(after)
    # A product may not write its own A either.
    pending = {place: before[place] | _left(code[place], {}) for place in sorted(before)}
    early = (code[place] for place in pending if _touches(code[place], pending[place]))
    return [f"{one.address:04x} {one.text}" for one in early]
