"""Launches: a kernel, its grid, its arguments, its specialization, and all of it as integers.

Does not import Triton, so that kernels compiled ahead need no compiler. Triton itself would
specialize on every integer; here only strides count, so that a new batch or memory size compiles no
new kernel.
"""

import ast
import functools
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRITON = Path(__file__).parents[1]

POINTER_TYPE = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
#: Pointers (in bytes) and strides (in elements) that this divides allow loads of whole vectors.
ALIGNMENT = 16


class Kernel(NamedTuple):
    """A function of a module of kernels under rrd_kernels/triton."""

    module: str  # within rrd_kernels.triton, such as "fifo.kernels.attention"
    name: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names, in order."""
        return _functions_of(self.module)[self.name]


def source_of(module: str) -> Path:
    """The file of a module of kernels."""
    return TRITON.joinpath(*module.split(".")).with_suffix(".py")


@functools.cache
def _functions_of(module: str) -> dict[str, tuple[str, ...]]:
    """The parameters of each function, from the source: importing it would import Triton."""
    tree = ast.parse(source_of(module).read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {node.name: tuple(arg.arg for arg in node.args.args) for node in functions}


class Launch(NamedTuple):
    """A kernel's grid, run-time arguments and compile-time constants."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]  # dtypes by name
    num_warps: int
    num_stages: int = 1
    #: Programmatic dependent launch: the kernel may start before its predecessor has ended, and
    #: waits for that itself.
    dependent: bool = False


class Argument(NamedTuple):
    """How one argument enters the compiled code."""

    type: str  # Triton's name for it
    constant: int | None = None  # compiled in, not passed at run time
    aligned: bool = False


def describe(launch: Launch, name: str) -> Argument:
    """What is known of a run-time argument at compile time."""
    value = launch.arguments[name]
    if value is None:  # the constants leave no use for it
        return Argument("constexpr", constant=0)
    if isinstance(value, Tensor):
        # Alignment of the normalizers is ignored: part of a longer buffer, and loaded one by one.
        aligned = name != "normalizers" and value.data_ptr() % ALIGNMENT == 0
        return Argument(POINTER_TYPE[value.dtype], aligned=aligned)
    if isinstance(value, float):
        return Argument("fp64" if launch.constants.get("DTYPE") == "float64" else "fp32")
    width = "i32" if -(2**31) <= value < 2**31 else "i64"
    if name.endswith(("_row", "_dim")):  # strides
        # Compile in the stride of contiguous rows that are read tile by tile: the compiler then
        # moves addresses out of the loop. tf32x3's three products leave no registers for them.
        contiguous = name == "stride_row" and value == launch.constants["DIM"]
        if value == 1 or (contiguous and launch.constants["INPUT_PRECISION"] != "tf32x3"):
            return Argument("constexpr", constant=value)
        return Argument(width, aligned=value % ALIGNMENT == 0)
    return Argument(width)


class Specialization(NamedTuple):
    """Everything that a launch's machine code depends on, except the compiler and the card."""

    kernel: Kernel
    arguments: tuple[tuple[str, Argument], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int

    @property
    def passed(self) -> list[tuple[str, str]]:
        """Names and types of the machine code's parameters, in order."""
        described = dict(self.arguments)
        names = (name for name in self.kernel.parameters if name in described)
        return [(name, described[name].type) for name in names if described[name].constant is None]

    @classmethod
    def from_json(cls, data: list[Any]) -> "Specialization":
        """The specialization that ``json`` has read as ``data``."""
        kernel, arguments, constants, num_warps, num_stages = data
        return cls(
            Kernel(*kernel),
            tuple((name, Argument(*argument)) for name, argument in arguments),
            tuple((name, value) for name, value in constants),
            num_warps,
            num_stages,
        )


def specialize(launch: Launch) -> Specialization:
    """The specialization of ``launch``."""
    return Specialization(
        launch.kernel,
        tuple((name, describe(launch, name)) for name in launch.arguments),
        tuple(launch.constants.items()),
        launch.num_warps,
        launch.num_stages,
    )


class Binary(NamedTuple):
    """Machine code for NVIDIA's driver, and what a launch of it needs."""

    code: bytes
    name: str  # of the function in it
    shared_bytes: int  # of a program
    threads: int  # of a program


class Loaded(NamedTuple):
    """A kernel that csrc/cuda can launch."""

    function: int
    threads: int
    shared_bytes: int
    passed: tuple[tuple[str, str], ...]  # names and types of its parameters, in order


class Source(IntEnum):
    """Where a kernel's parameter comes from; the same as in csrc/cuda/recipe.h."""

    STUDENT = 0
    TEACHER = 1
    MEMORY = 2
    PTR = 3
    LOSS = 4
    GRADIENT = 5
    WORKSPACE = 6
    VALUE = 7


Place = tuple[Source, int]


def shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _bits(type_name: str, value: Any) -> int:
    """An int64 whose first bytes are ``value`` in the parameter's type."""
    if isinstance(value, float):
        packed = struct.pack("<d" if type_name == "fp64" else "<f", value)
        return int.from_bytes(packed, "little", signed=True)
    return int(value)


def encode_launch(launch: Launch, loaded: Loaded, place_of: Callable[[Tensor], Place]) -> list[int]:
    parameters: list[int] = []
    for name, type_name in loaded.passed:
        value = launch.arguments[name]
        if isinstance(value, Tensor):
            parameters += place_of(value)
        else:
            parameters += (Source.VALUE, _bits(type_name, value))
    grid = launch.grid + (1,) * (3 - len(launch.grid))
    settings = loaded.threads, loaded.shared_bytes, int(launch.dependent)
    return [loaded.function, *grid, *settings, len(loaded.passed), *parameters]


def encode(launches: Sequence[Launch], loaded: Sequence[Loaded]) -> list[int]:
    """The launches with their tensors' addresses; the tensors must live until the launch."""
    encoded = [0, 0]
    for launch, kernel in zip(launches, loaded, strict=True):
        encoded += encode_launch(launch, kernel, lambda tensor: (Source.VALUE, tensor.data_ptr()))
    return encoded
