"""PTX with one thing wrong: what a compiler, or whoever changes a kernel, may get wrong."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Spoilt(NamedTuple):
    """One change to one line."""

    kind: str
    line: int  # from 1
    was: str
    ptx: str


def _moved(line: str) -> str:
    """An address of 16 bytes further."""
    return re.sub(
        r"\[\s*(%?\w+)\s*(?:\+\s*(\d+)\s*)?\]",
        lambda match: f"[{match[1]}+{int(match[2] or 0) + 16}]",
        line,
        count=1,
    )


def _later(line: str) -> str:
    """A wait that leaves one group more."""
    return re.sub(r"(\d+);", lambda match: f"{int(match[1]) + 1};", line)


def _halves(line: str) -> str:
    return re.sub(r"(%\w+), (%\w+), (%\w+);", r"\1, \3, \2;", line)


def _stride(line: str) -> str:
    """The stride between groups of eight rows, of a descriptor's constant part."""
    return re.sub(r"(\d+);", lambda match: f"{int(match[1]) ^ 1 << 33};", line)


#: By kind: which lines, and what they become.
KINDS: dict[str, tuple[str, Callable[[str], str]]] = {
    "barrier removed": (r"bar\.(warp\.)?sync", lambda line: ""),
    "copy wait removed": (r"cp\.async\.wait_group", lambda line: ""),
    "copy wait later": (r"cp\.async\.wait_group", _later),
    "copies not committed": (r"cp\.async\.commit_group", lambda line: ""),
    "product wait removed": (r"wgmma\.wait_group", lambda line: ""),
    "product wait later": (r"wgmma\.wait_group", _later),
    "product fence removed": (r"wgmma\.fence", lambda line: ""),
    "proxy fence removed": (r"fence\.proxy\.async", lambda line: ""),
    "copy to elsewhere": (r"cp\.async\.c[ag]", _moved),
    "store elsewhere": (r"\bst\.(shared|global)", _moved),
    "load from elsewhere": (r"\bld\.(shared|global)|ldmatrix", _moved),
    "guard removed": (
        r"@%p\d+ (ld|st|atom|red)\.global",
        lambda line: re.sub(r"@%p\d+ ", "", line),
    ),
    "halves swapped": (r"cvt\.rn\.(b?f16)x2\.f32", _halves),
    "stride changed": (r"or\.b64\s+%rd\d+, %rd\d+, \d{17,};", _stride),
    "release weakened": (r"atom\..*\.acq_rel", lambda line: line.replace("acq_rel", "relaxed")),
}


def spoilt(ptx: str, *kinds: str) -> Iterator[Spoilt]:
    """Every change of some kinds, or of all."""
    lines = ptx.splitlines(keepends=True)
    for number, line in enumerate(lines):
        code = line.split("//")[0]
        for kind in kinds or KINDS:
            pattern, change = KINDS[kind]
            if re.search(pattern, code):
                changed = [*lines[:number], change(code.rstrip()) + "\n", *lines[number + 1 :]]
                yield Spoilt(kind, number + 1, code.strip(), "".join(changed))
