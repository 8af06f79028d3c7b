"""Whether PTX leaves equal sums in a warp's lanes, all of which may store theirs to one place."""

import re
from collections import defaultdict

#: Operation, what it writes, what it reads.
_INSTRUCTION = re.compile(r"(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+(\{[^}]*\}|[^,]+),(.*);")
_REGISTERS = re.compile(r"%\w+")
#: What moves a value, or a double as two halves.
_COPY = re.compile(r"mov\.|cvt\.(u64\.u32|u32\.u64)|(shl|or)\.b64")
_SYMMETRIC = re.compile(r"(add|max|min)\.")


def lopsided(ptx: str) -> list[str]:
    """Instructions after which two lanes that have exchanged a value may have unequal ones.

    To add up a value, each lane gives it to the one whose number differs in one bit
    (``shfl.sync.bfly``) and adds what it got to what it had. Both lanes have the same sum, since an
    addition does not care which is which. ``fma(x, y, got)`` does: its product is exact, where the
    other lane was given a rounded one. The assembler, too, makes a fused operation out of a product
    and an addition that are not said to be rounded (``.rn``).
    """
    copies, had, products, others = defaultdict(set), {}, set(), []
    for line in ptx.splitlines():
        match = _INSTRUCTION.match(line.split("//")[0].strip())
        if match is None:
            continue
        operation, written, read = match[1], *map(_REGISTERS.findall, match.groups()[1:])
        if _COPY.match(operation):
            for register in written:
                copies[register].update(read)
        elif operation.startswith("shfl.sync.bfly."):
            had[written[0]] = read[0]
        elif not operation.startswith("selp."):  # which sorts values among lanes, and joins none
            others.append((operation, read, line.strip()))
            if operation.startswith("mul.f"):
                products.update(written)

    def origins(register: str) -> set[str]:
        found, pending = set(), {register}
        while pending:
            found |= pending
            pending = set().union(*(copies[one] for one in pending)) - found
        return found

    wrong = []
    for operation, read, line in others:
        values = [origins(register) for register in read]
        for at, value in enumerate(values):
            own = set().union(*(origins(had[got]) for got in value & had.keys()))
            beside = set().union(*values[:at], *values[at + 1 :])
            fused = operation.startswith("add.f") and own & products
            if own and (fused or not (_SYMMETRIC.match(operation) and own & beside)):
                wrong.append(line)
    return wrong
