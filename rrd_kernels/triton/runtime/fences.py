"""Proxy fences that Triton's PTX lacks.

The tensor cores of Hopper and Blackwell read shared memory through the asynchronous proxy. Only a
proxy fence orders such a read after the threads' writes, those of ``cp.async`` included. Triton
3.6.0 and 3.7.0 leave some fences out.
"""

import re

FENCE = "fence.proxy.async.shared::cta;"

#: Writes to shared memory, and waits for such writes.
_WRITE = re.compile(r"\b(cp\.async\.wait_(group|all)|(st|atom|red)\.shared|stmatrix|call)\b")
_FENCE = re.compile(r"fence\.proxy\.async(\.shared::(cta|cluster))?;")
#: Products, and what begins a group of them.
_PRODUCT = re.compile(r"\b(wgmma\.(fence|mma_async)|tcgen05\.mma)\b")
_LABEL = re.compile(r"([\w$]+):")
_BRANCH = re.compile(r"\b(bra|branchtargets)\b")
_NAME = re.compile(r"[\w$]+")


def missing_fences(ptx: str) -> list[int]:
    """Indices of the lines before which a fence is missing.

    Between a write to shared memory and a product, every path must have a fence that all threads
    execute. It may be on either side of a barrier: a thread executes it after its own writes, or
    before its own product.
    """
    statements = [line.split("//")[0].strip() for line in ptx.splitlines()]
    unfenced: set[str] = set()  # labels that a path reaches from a write without a fence
    while True:
        missing, found = [], set()
        written = False
        for number, statement in enumerate(statements):
            if label := _LABEL.match(statement):
                written |= label[1] in unfenced
            if _WRITE.search(statement):
                written = True
            elif _FENCE.match(statement):
                written = False
            elif written and _PRODUCT.search(statement):
                missing.append(number)
                written = False
            elif written and _BRANCH.search(statement):
                found.update(_NAME.findall(statement))
        if found <= unfenced:
            return missing
        unfenced |= found


def with_fences(ptx: str) -> str:
    """``ptx`` with the missing fences, in the places where newer versions of Triton have them."""
    lines = ptx.splitlines(keepends=True)
    for number in reversed(missing_fences(ptx)):
        lines.insert(number, f"\t{FENCE}\n")
    return "".join(lines)
