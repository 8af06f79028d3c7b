"""Proxy fences that PTX lacks.

The tensor cores of Hopper and Blackwell read shared memory through the asynchronous proxy. What
threads have written there before, with ``cp.async`` too, is ordered before that only by a proxy
fence. Triton 3.6.0 and 3.7.0 leave some out.
"""

import re

FENCE = "fence.proxy.async.shared::cta;"

#: What has written to shared memory, or waited for such a write.
_WRITE = re.compile(
    r"\b(cp\.async\.wait_(group|all)|st\.shared|stmatrix|(atom|red)\.shared|call)\b"
)
_FENCE = re.compile(r"fence\.proxy\.async(\.shared::(cta|cluster))?;")
#: What begins a group of products, or is one.
_PRODUCT = re.compile(r"\b(wgmma\.(fence|mma_async)|tcgen05\.mma)\b")
#: Where branches lead to; ``$L__tmp1:`` is for debuggers.
_LABEL = re.compile(r"(?!\$L__tmp)[\w$]+:")


def missing_fences(ptx: str) -> list[int]:
    """Indices of the lines before which a fence is missing.

    Between a write to shared memory and a product, every path must have a fence that all threads
    execute. Lines are read from top to bottom, and behind a label something counts as written: so
    it does not matter where branches come from, and at worst a loop has a fence that could stand
    before it. On which side of a barrier the fence is does not matter: a thread executes it after
    its own writes, or before its own product.
    """
    missing = []
    written = False
    for number, line in enumerate(ptx.splitlines()):
        statement = line.split("//")[0].strip()
        if _WRITE.search(statement) or _LABEL.match(statement):
            written = True
        elif _FENCE.match(statement):
            written = False
        elif written and _PRODUCT.search(statement):
            missing.append(number)
            written = False
    return missing


def with_fences(ptx: str) -> str:
    """The same with the fences that are missing, where newer versions of Triton have them."""
    lines = ptx.splitlines(keepends=True)
    for number in reversed(missing_fences(ptx)):
        lines.insert(number, f"\t{FENCE}\n")
    return "".join(lines)
