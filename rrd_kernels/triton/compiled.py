"""From a launch to machine code: what a kernel is specialised on, said explicitly.

Triton's own specialisation looks at every integer; here only strides count, so that neither the
batch nor the memory's size makes a new kernel.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import ASTSource

from rrd_kernels.triton.step import Launch

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
        return Argument("fp64" if launch.constants.get("DTYPE") == tl.float64 else "fp32")
    width = "i32" if -(2**31) <= value < 2**31 else "i64"
    if name.endswith(("_row", "_dim")):  # strides
        # A memory of contiguous rows that is gone through tile by tile; three products of TF32 have
        # no register for what the compiler moves out of their loop.
        contiguous = name == "stride_row" and value == launch.constants["DIM"]
        if value == 1 or (contiguous and launch.constants["INPUT_PRECISION"] != "tf32x3"):
            return Argument("constexpr", constant=value)
        return Argument(width, aligned=value % ALIGNMENT == 0)
    return Argument(width)


def source_of(launch: Launch) -> ASTSource:
    """The kernel with its argument types and constants, to be compiled for any target."""
    described = {name: describe(launch, name) for name in launch.arguments}
    constants = dict(launch.constants)
    constants |= {name: a.constant for name, a in described.items() if a.constant is not None}
    signature, attributes = {}, {}
    for position, name in enumerate(launch.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = described[name].type
        if described[name].aligned:
            attributes[(position,)] = [["tt.divisibility", ALIGNMENT]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_launch(launch: Launch, target: Any = None) -> Any:
    """Triton's CompiledKernel, from its cache on disk if it is there.

    Args:
        launch: what is to be launched.
        target: a ``triton.backends.compiler.GPUTarget``; default: the current device's. No GPU is
            needed to compile for one.
    """
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        # Said aloud because Triton's default is to change.
        "enable_fp_fusion": True,
    }
    return triton.compile(source_of(launch), target=target, options=options)
