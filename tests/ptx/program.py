"""PTX as text, taken apart: instructions, labels, registers, parameters."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class PtxError(Exception):
    """What PTX leaves open or forbids, or what this interpreter does not know."""


class Address(NamedTuple):
    """``[register + offset]`` or ``[name + offset]``."""

    base: str
    offset: int


@dataclass(frozen=True)
class Instruction:
    """One instruction, and where it is from."""

    opcode: str
    operands: tuple[Any, ...]  # str: a register, an immediate, a name; a tuple of them; Address
    predicate: str  # a register, or ""
    negated: bool
    text: str
    line: int  # of the PTX, from 1
    source: str  # "attention.py:34" of what it was compiled from

    @property
    def where(self) -> str:
        return f"PTX line {self.line} ({self.source}): {self.text}"


@dataclass
class Program:
    """One kernel."""

    name: str
    threads: int
    parameters: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # numbers of instructions
    #: Register types by prefix, as "r": "b32", and where a block has which register.
    types: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    steps: list[Callable[[Any], None]] = field(default_factory=list)  # instructions, compiled
    shared_unit: int = 4  # bytes, of the smallest access to shared memory

    def size_of(self, register: str) -> int:
        """Bytes."""
        type_ = self.types[register.strip("%0123456789")]
        return 1 if type_ == "pred" else int(type_[1:]) // 8


_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
_SCOPE = re.compile(r"\{ \.reg \.\w+ (\w+); (.*) \}")
_LABEL = re.compile(r"([$\w]+):")


def parse(ptx: str) -> Program:
    """The one kernel of a PTX module."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"', ptx, re.MULTILINE))
    entry = re.search(r"\.visible \.entry (\w+)\(([^)]*)\)(.*?)\{", ptx, re.DOTALL)
    threads = re.search(r"\.reqntid (\d+)", entry[3]) if entry else None
    if entry is None or threads is None:
        raise PtxError("no kernel with a number of threads (.reqntid) in this PTX")
    program = Program(entry[1], int(threads[1]))
    program.parameters = re.findall(r"\.param [^,]*?(\w+)\s*(?:,|$)", entry[2])
    source, first = "", ptx.count("\n", 0, entry.end()) + 1
    for number, line in enumerate(ptx[entry.end() :].splitlines(), first):
        rest = line.split("//")[0].strip()
        if rest == "}":
            return program
        if scope := _SCOPE.fullmatch(rest):  # for half of a register that is not wanted
            rest, uses = re.subn(rf"\b{scope[1]}\b", "_", scope[2])
            if uses != 1:
                raise PtxError(f"{program.name}, line {number}: unknown use of a scope")
        if label := _LABEL.match(rest):
            program.labels[label[1]] = len(program.instructions)
            rest = rest[label.end() :].strip()
        for statement in filter(None, map(str.strip, rest.split(";"))):
            if location := re.match(r"\.loc\s+(\d+) (\d+)", statement):
                source = f"{files[location[1]]}:{location[2]}"
            elif declared := re.match(r"\.reg\s+\.(\w+)\s+%(\w+)<\d+>", statement):
                program.types[declared[2]] = declared[1]
            elif statement.startswith("."):
                raise PtxError(f"{program.name}, line {number}: unknown directive {statement}")
            else:
                program.instructions.append(_instruction(statement, number, source))
    raise PtxError(f"{program.name} does not end")


def _instruction(statement: str, line: int, source: str) -> Instruction:
    match = _STATEMENT.fullmatch(statement)
    if match is None:
        raise PtxError(f"line {line}: {statement!r} is no instruction")
    negated, predicate, opcode, rest = match.groups("")
    # At commas, those within braces aside.
    operands = tuple(map(_operand, re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", rest)))
    text = re.sub(r"\s+", " ", statement)
    return Instruction(opcode, operands, predicate, bool(negated), text, line, source)


def _operand(text: str) -> str | tuple[str, ...] | Address:
    text = text.strip()
    if text.startswith("{"):
        return tuple(part.strip() for part in text.strip("{}").split(","))
    if text.startswith("["):
        if match := _ADDRESS.fullmatch(text):
            return Address(match[1], int(match[2] or "0", 0))
        raise PtxError(f"unknown address {text}")
    return text
