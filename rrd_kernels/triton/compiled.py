"""From a launch to machine code, by Triton's compiler."""

import importlib
from typing import Any

import triton
import triton.language as tl
from triton.compiler import ASTSource

from rrd_kernels.triton.launch import ALIGNMENT, Kernel, Launch, describe

DTYPE = {
    "float64": tl.float64,
    "float32": tl.float32,
    "float16": tl.float16,
    "bfloat16": tl.bfloat16,
}


def function_of(kernel: Kernel) -> Any:
    """Triton's function, or its interpreter's."""
    module = importlib.import_module(f"rrd_kernels.triton.kernels.{kernel.module}")
    return getattr(module, kernel.name)


def constants_of(launch: Launch) -> dict[str, Any]:
    """The compile-time constants as kernels take them."""
    return {
        name: DTYPE[value] if name in ("DTYPE", "OPERAND") else value
        for name, value in launch.constants.items()
    }


def source_of(launch: Launch) -> ASTSource:
    """The kernel with its argument types and constants, to be compiled for any target."""
    described = {name: describe(launch, name) for name in launch.arguments}
    constants = constants_of(launch)
    constants |= {name: a.constant for name, a in described.items() if a.constant is not None}
    signature, attributes = {}, {}
    for position, name in enumerate(launch.kernel.parameters):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = described[name].type
        if described[name].aligned:
            attributes[(position,)] = [["tt.divisibility", ALIGNMENT]]
    return ASTSource(function_of(launch.kernel), signature, constants, attributes)


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
