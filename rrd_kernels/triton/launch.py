"""What is launched: a kernel, its grid, its arguments, and what it is specialised on.

Described without Triton, so that kernels which were compiled ahead need no compiler. Triton's own
specialisation looks at every integer; here only strides count, so that neither the batch nor the
memory's size makes a new kernel.
"""

import ast
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

KERNELS = Path(__file__).with_name("kernels")

POINTER_TYPE = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
#: Bytes, or elements of a stride, whose multiples allow whole vectors to be loaded.
ALIGNMENT = 16


class Kernel(NamedTuple):
    """A function of rrd_kernels/triton/kernels."""

    module: str
    name: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names, in order."""
        return _functions_of(self.module)[self.name]


@functools.cache
def _functions_of(module: str) -> dict[str, tuple[str, ...]]:
    """The parameters of each function, from the source: importing it would import Triton."""
    tree = ast.parse((KERNELS / f"{module}.py").read_text())
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


class Argument(NamedTuple):
    """How one argument enters the compiled code."""

    type: str  # Triton's name for it
    constant: int | None = None  # folded into the code: not passed at run time
    aligned: bool = False


def describe(launch: Launch, name: str) -> Argument:
    """What is known of a run-time argument at compile time."""
    value = launch.arguments[name]
    if isinstance(value, Tensor):
        return Argument(POINTER_TYPE[value.dtype], aligned=value.data_ptr() % ALIGNMENT == 0)
    if isinstance(value, float):
        return Argument("fp64" if launch.constants.get("DTYPE") == "float64" else "fp32")
    width = "i32" if -(2**31) <= value < 2**31 else "i64"
    if name.endswith(("_row", "_dim")):  # strides
        # A memory of contiguous rows that is gone through tile by tile; three products of TF32 have
        # no register for what the compiler moves out of their loop.
        contiguous = name == "stride_row" and value == launch.constants["DIM"]
        if value == 1 or (contiguous and launch.constants["INPUT_PRECISION"] != "tf32x3"):
            return Argument("constexpr", constant=value)
        return Argument(width, aligned=value % ALIGNMENT == 0)
    return Argument(width)


def passed(launch: Launch) -> list[tuple[str, Argument]]:
    """The run-time arguments that the compiled code takes, in its order."""
    names = (name for name in launch.kernel.parameters if name in launch.arguments)
    described = ((name, describe(launch, name)) for name in names)
    return [(name, argument) for name, argument in described if argument.constant is None]
