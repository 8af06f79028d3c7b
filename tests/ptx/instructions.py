"""Every instruction that is known, as a function of a block. What is not here is an error.

Operands are described by words: a type, a literal that must stand there, ``[shared]``, ``[global]``
or ``[param]`` for an address, ``<type>n`` for n registers in braces, ``int`` for an immediate.
Results are left of ``=``. A function returns values for all threads; registers of inactive threads
are not changed.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx import tensor_cores
from ptx.arithmetic import DTYPES, Array, Operation, canonical, operation
from ptx.asynchronous import Product, warps_of
from ptx.machine import Block, Step, getter
from ptx.program import Address, Instruction, Program, PtxError, parse

#: What the parts of an opcode are, by the names that its pattern gives them.
Groups = dict[str, str]

#: A pattern of opcodes and what makes a step of one.
_BUILDERS: list[tuple[re.Pattern[str], Callable[[Program, Instruction, Any], Step]]] = []


def _builder(pattern: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        _BUILDERS.append((re.compile(pattern), function))
        return function

    return register


def _instruction(pattern: str, words: str = "") -> Callable[[Any], Any]:
    """For a function of a block, the pattern's groups and the operands."""

    def register(function: Any) -> Any:
        def build(program: Program, instruction: Instruction, match: re.Match[str]) -> Step:
            return _described(program, instruction.operands, function, words, match.groupdict("1"))

        _builder(pattern)(build)
        return function

    return register


def compile_ptx(ptx: str) -> Program:
    """A kernel whose every instruction is a function of a block."""
    program = parse(ptx)
    text = "\n".join(instruction.text for instruction in program.instructions)
    for width in re.findall(r"\b(?:ld|st)\.shared\S*\.b(\d+) ", text):
        program.shared_unit = min(program.shared_unit, int(width) // 8)
    for name in re.findall(r"%[a-z]+\d+\b", text):
        program.numbers.setdefault(name, len(program.numbers))
    for instruction in program.instructions:
        try:
            program.steps.append(_build(program, instruction))
        except PtxError as error:
            raise PtxError(f"{program.name}, {instruction.where}: {error}") from error
    return program


def _build(program: Program, instruction: Instruction) -> Step:
    """The function of one instruction, under its predicate."""
    opcode, operands = instruction.opcode, instruction.operands
    found = ((builder, pattern.fullmatch(opcode)) for pattern, builder in _BUILDERS)
    if (meaning := operation(opcode)) and not any(type(each) is tuple for each in operands):
        step = _arithmetic(program, instruction, meaning)
    elif builders := [(builder, match) for builder, match in found if match]:
        step = builders[0][0](program, instruction, builders[0][1])
    else:
        raise PtxError("unknown instruction")
    if not instruction.predicate or opcode.startswith("bra"):
        return step
    if opcode in ("ret", "bar.sync"):  # after which threads do not go on as they were
        raise PtxError("unknown predicate")
    chosen = _predicate(program, instruction)

    def predicated(block: Block) -> None:
        outer, mask = block.mask, chosen(block) & block.active()
        block.mask = None if mask.all() else mask
        if mask.any():
            step(block)
        block.mask = outer

    return predicated


def _predicate(program: Program, instruction: Instruction) -> Callable[[Block], Array]:
    read = getter(program, instruction.predicate, "pred")
    return (lambda block: ~read(block)) if instruction.negated else read


def _described(
    program: Program, operands: tuple[Any, ...], function: Any, words: str, groups: Groups
) -> Step:
    described = words.format(**groups).split()
    results = described.index("=") if "=" in described else 0
    described = [word for word in described if word != "="]
    if len(described) != len(operands):
        raise PtxError(f"{len(operands)} operands, not {len(described)}")
    pairs = list(zip(described, operands, strict=True))
    targets = [name for word, operand in pairs[:results] for name in _names(word, operand)]
    numbers = [program.numbers[name] for name in targets]
    sizes = [program.size_of(name) for name in targets]
    reads = [_operand(program, operand, word) for word, operand in pairs[results:]]
    reads = [read for read in reads if read is not None]

    def step(block: Block) -> None:
        returned = function(block, groups, *[read(block) for read in reads])
        for number, size, value in zip(numbers, sizes, returned or (), strict=True):
            block.write(number, value.astype(f"{value.dtype.kind}{size}", copy=False))

    return step


def _names(word: str, operand: Any) -> tuple[str, ...]:
    """The registers of a vector, or the one there is."""
    names = operand if type(operand) is tuple else (operand,)
    if word.startswith("<") and not word.endswith((">", f">{len(names)}")):
        raise PtxError(f"{len(names)} registers for {word}")
    return names


def _operand(program: Program, operand: Any, word: str) -> Callable[[Block], Any] | None:
    """How an operand that a word describes is read; a literal is not."""
    if re.fullmatch(r"-?\d+", word):
        if operand != word:
            raise PtxError(f"{operand} in place of {word}")
        return None
    if word == "int":
        value = int(operand, 0)
        return lambda block: value
    if word.startswith("<"):
        type_ = word[1 : word.index(">")]
        reads = [_operand(program, name, type_) for name in _names(word, operand)]
        return lambda block: [read(block) for read in reads]
    if not word.startswith("["):
        read = getter(program, operand, word)
        return lambda block: block.spread(read(block))
    if not isinstance(operand, Address):
        raise PtxError(f"{operand} is no address")
    if word == "[param]":
        return lambda block: block.place.parameters[operand.base]
    dtype = DTYPES["u32" if word == "[shared]" else "u64"]
    base = getter(program, operand.base, "u32" if word == "[shared]" else "u64")
    offset = np.array(operand.offset & (1 << 8 * dtype.itemsize) - 1, dtype)
    return lambda block: block.spread(base(block) + offset)


def _arithmetic(program: Program, instruction: Instruction, meaning: Operation) -> Step:
    function, takes, returns = meaning
    result, *operands = instruction.operands
    reads = [getter(program, o, t) for o, t in zip(operands, takes, strict=True)]
    number, dtype = program.numbers[str(result)], DTYPES[returns]
    size = program.size_of(str(result))
    moved = instruction.opcode.split(".")[0] in ("mov", "selp", "neg", "abs")
    computed = dtype.kind == "f" and dtype.itemsize > 2 and not moved

    def step(block: Block) -> None:
        value = function(*[read(block) for read in reads])
        if value.dtype != dtype:
            raise PtxError(f"computes {value.dtype}, not {dtype}")
        if dtype.itemsize != size:  # a register may be wider than what it is given
            value = value.astype(f"{dtype.kind}{size}")
        block.write(number, canonical(value) if computed else value)

    return step


# Where threads go

_instruction("ret")(lambda block, groups: block.go_on())
_instruction(r"bar\.sync", "0")(lambda block, groups: block.barrier())
_instruction(r"bar\.warp\.sync", "-1")(lambda block, groups: block.warp_barrier())
_instruction(r"griddepcontrol\.wait")(lambda block, groups: block.wait_for_predecessor())
_instruction(r"griddepcontrol\.launch_dependents")(lambda block, groups: block.launch_dependents())


@_builder(r"bra(\.uni)?")
def _branch(program: Program, instruction: Instruction, match: re.Match[str]) -> Step:
    target = program.labels[str(instruction.operands[0])]
    if not instruction.predicate:
        return lambda block: block.branch(target, None)
    chosen = _predicate(program, instruction)
    return lambda block: block.branch(target, chosen(block))


# Memory

_ACCESS = r"\.(?P<space>global|shared)(::cta)?(\.cg)?(\.v(?P<count>[24]))?\.(?P<type>b(8|16|32|64))"


_instruction(r"ld\.param\.(?P<type>[bsuf](32|64))", "{type} = [param]")(
    lambda block, groups, value: [block.spread(value.view(DTYPES[groups["type"]]))]
)


@_instruction("ld" + _ACCESS, "<{type}>{count} = [{space}]")
def _load(block: Block, groups: Groups, addresses: Array) -> list[Array]:
    lanes, dtype = block.lanes(), DTYPES[groups["type"]]
    width = dtype.itemsize * int(groups["count"])
    values = block.memory[groups["space"]].load(addresses[lanes], width, lanes)
    return block.of_lanes(lanes, values.view(dtype))


@_instruction("st" + _ACCESS, "[{space}] <{type}>{count}")
def _store(block: Block, groups: Groups, addresses: Array, registers: list[Array]) -> None:
    lanes = block.lanes()
    values = np.ascontiguousarray(np.stack(registers, axis=1)[lanes])
    block.memory[groups["space"]].store(addresses[lanes], values, lanes)


@_instruction(
    r"atom\.global\.gpu\.(?P<order>acq_rel|relaxed)\.add\.(?P<type>u32|u64)",
    "{type} = [global] {type}",
)
def _atomic_add(block: Block, groups: Groups, addresses: Array, values: Array) -> list[Array]:
    before = np.zeros_like(values)
    for lane in block.lanes():
        one = slice(lane, lane + 1)
        if groups["order"] == "acq_rel":
            location = block.tensors.releases.setdefault(int(addresses[lane]), {})
            block.who.synchronise(location, int(lane))
        before[one] = block.tensors.add(addresses[one], values[one], block.every[one])
    return [before]


_instruction(r"red\.global\.gpu\.(?P<order>relaxed)\.add\.(?P<type>u32|u64)", "[global] {type}")(
    lambda *operands: _atomic_add(*operands) and None
)


@_instruction(r"cp\.async\.(cg|ca)\.shared\.global", "[shared] [global] int u32")
def _copy(
    block: Block, groups: Groups, to: Array, source: Array, width: int, wanted: Array
) -> None:
    lanes = block.lanes()
    if not np.isin(wanted[lanes], (0, width)).all():
        raise PtxError("copies a part of an element")
    block.copies.copy(to[lanes], source[lanes], width, lanes, wanted[lanes] == width)


_instruction(r"cp\.async\.commit_group")(lambda block, groups: block.copies.commit())
_instruction(r"cp\.async\.wait_group", "int")(lambda block, groups, n: block.copies.wait(n))


_instruction(r"fence\.proxy\.async(\.shared::cta)?")(lambda block, groups: block.proxy_fence())

# Registers of one thread and of a warp


@_builder(r"mov\.(?P<whole>b32|b64)")
def _repack(program: Program, instruction: Instruction, match: re.Match[str]) -> Step:
    """A register out of two of half the width, or into them; "_" is for what is not wanted."""
    to, source = instruction.operands
    whole, half = match["whole"], {"b32": "b16", "b64": "b32"}[match["whole"]]

    def pack(block: Block, groups: Groups, halves: list[Array]) -> list[Array]:
        return [np.stack(halves, axis=1).view(DTYPES[whole])[:, 0]]

    def unpack(block: Block, groups: Groups, value: Array) -> list[Array]:
        halves = np.ascontiguousarray(value)[:, None].view(DTYPES[half]).T
        return [part.copy() for name, part in zip(to, halves, strict=True) if name != "_"]

    if type(source) is tuple:
        return _described(program, (to, source), pack, f"{whole} = <{half}>2", {})
    wanted = tuple(name for name in to if name != "_")
    return _described(program, (wanted, source), unpack, f"<{half}> = {whole}", {})


@_instruction(r"shfl\.sync\.(?P<kind>bfly|idx)\.b32", "b32 = b32 u32 31 -1")
def _shuffle(block: Block, groups: Groups, value: Array, lane: Array) -> list[Array]:
    block.whole_warps()
    own = block.every & 31
    source = own ^ lane if groups["kind"] == "bfly" else lane & np.uint32(31)
    return [value[block.every - own + source]]


@_instruction(r"redux\.sync\.(?P<kind>add|min|max)\.(?P<type>[su]32)", "{type} = {type} b32")
def _reduce(block: Block, groups: Groups, value: Array, members: Array) -> list[Array]:
    block.whole_warps()
    if (members != 0xFFFFFFFF).any():
        raise PtxError("a reduction over less than a warp")
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[groups["kind"]]
    return [np.repeat(function.reduce(value.reshape(-1, 32), 1, dtype=value.dtype), 32)]


# Matrices

_MATRICES = r"\.sync\.aligned\.m8n8\.x(?P<count>[124])\.(?P<trans>trans\.)?shared\.b16"
_FORMAT = r"f32\.(?P<format>bf16|f16|tf32)\.(?P=format)"


def _rows_of_matrices(block: Block, addresses: Array, count: int) -> list[tuple[Array, Array]]:
    """For each matrix of a warp the addresses of its rows, and the threads that give them."""
    block.whole_warps()
    first = np.flatnonzero(block.active()[::32]) * 32
    givers = [(first[:, None] + 8 * i + np.arange(8)).reshape(-1) for i in range(count)]
    return [(addresses[threads], threads) for threads in givers]


def _transposed(words: Array, groups: Groups) -> Array:
    """8×8 matrices as they are, or transposed."""
    matrices = np.ascontiguousarray(words).view(np.uint16).reshape(-1, 8, 8)
    if groups["trans"] == "trans.":
        matrices = matrices.transpose(0, 2, 1)
    return np.ascontiguousarray(matrices)


@_instruction("ldmatrix" + _MATRICES, "<b32>{count} = [shared]")
def _load_matrices(block: Block, groups: Groups, addresses: Array) -> list[Array]:
    """Each lane gets two neighbouring elements of a row, or of a column with ``.trans``."""
    registers = []
    for rows, givers in _rows_of_matrices(block, addresses, int(groups["count"])):
        words = _transposed(block.shared.load(rows, 16, givers), groups).view(np.uint32)
        registers += block.of_lanes(block.lanes(), words.reshape(-1, 1))
    return registers


@_instruction("stmatrix" + _MATRICES, "[shared] <b32>{count}")
def _store_matrices(block: Block, groups: Groups, addresses: Array, registers: list[Array]) -> None:
    rows = _rows_of_matrices(block, addresses, len(registers))
    for register, (at, givers) in zip(registers, rows, strict=True):
        matrices = _transposed(register[block.lanes()], groups)
        block.shared.store(at, matrices.reshape(-1, 8), givers)


@_instruction(
    rf"mma\.sync\.aligned\.m16n8k(8|16)\.row\.col\.{_FORMAT}\.f32",
    "<b32>4 = <b32>4 <b32>2 <b32>4",
)
def _multiply(
    block: Block, groups: Groups, a: list[Array], b: list[Array], c: list[Array]
) -> list[Array]:
    block.whole_warps()
    format_ = groups["format"]
    product = tensor_cores.left(a, format_) @ tensor_cores.right(b, format_)
    return tensor_cores.scattered(product + tensor_cores.accumulated(c))


_instruction(r"wgmma\.fence\.sync\.aligned")(lambda block, groups: block.products.fence())
_instruction(r"wgmma\.commit_group\.sync\.aligned")(lambda block, groups: block.products.commit())
_instruction(r"wgmma\.wait_group\.sync\.aligned", "int")(
    lambda block, groups, newest: block.products.wait(newest)
)


@_builder(rf"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k(8|16)\.{_FORMAT}")
def _multiply_asynchronously(
    program: Program, instruction: Instruction, match: re.Match[str]
) -> Step:
    width = int(match["n"])
    accumulators, a, b, add, *flags = instruction.operands
    # Two signs, and for 16 bits whether an operand in shared memory is transposed.
    signs, flipped = flags[:2], ["0"] * (4 - len(flags)) + flags[2:]
    if signs != ["1", "1"] or len(accumulators) != width // 2:
        raise PtxError("unknown operands")
    inputs = a if type(a) is tuple else ()
    stored = [(b, width, flipped[1] == "1")]
    if not inputs:
        stored.insert(0, (a, 64, flipped[0] == "1"))

    def step(block: Block, groups: Groups, adds: Array, *words: Array) -> None:
        (added,) = {bool(one) for one in _alike(adds)}
        operands = []
        for word, (_, rows, transposed) in zip(words, stored, strict=True):
            units = []
            for group, one in enumerate(_alike(word)):
                chunks = tensor_cores.chunks(int(one), rows, transposed)
                units.append(block.shared.begin_product(chunks.reshape(-1), warps_of(group)))
            operands.append((units, rows, transposed))
        registers = [tuple(program.numbers[n] for n in names) for names in (accumulators, inputs)]
        block.products.begin(Product(match["format"], *registers, added, operands))

    words = [operand for operand, _, _ in stored]
    return _described(program, (add, *words), step, "pred" + " u64" * len(words), {})


def _alike(value: Array) -> list[Any]:
    """One of each warpgroup's values, which must be the same in all of its threads."""
    by_group = value.reshape(-1, 128)
    if (by_group != by_group[:, :1]).any():
        raise PtxError("threads of a warpgroup have different descriptors")
    return list(by_group[:, 0])
