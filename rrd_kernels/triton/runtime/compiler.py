"""Compiles kernels with Triton, for any card. Needs no GPU."""

import hashlib
import importlib
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.cache import get_cache_manager

from rrd_kernels.triton.runtime.fences import with_fences
from rrd_kernels.triton.runtime.launch import ALIGNMENT, Binary, Kernel, Specialization

DTYPE = {
    "float64": tl.float64,
    "float32": tl.float32,
    "float16": tl.float16,
    "bfloat16": tl.bfloat16,
}


def function_of(kernel: Kernel) -> Any:
    """The kernel's ``triton.jit`` function."""
    module = importlib.import_module(f"rrd_kernels.triton.{kernel.module}")
    return getattr(module, kernel.name)


def constants_of(constants: dict[str, Any]) -> dict[str, Any]:
    """``constants`` with Triton's dtypes in place of their names."""
    dtypes = {name: DTYPE[constants[name]] for name in ("DTYPE", "OPERAND") if name in constants}
    return constants | dtypes


def source_of(specialization: Specialization) -> ASTSource:
    """The kernel with its argument types and constants, to be compiled for any target."""
    described = dict(specialization.arguments)
    constants = constants_of(dict(specialization.constants))
    constants |= {name: a.constant for name, a in described.items() if a.constant is not None}
    signature, attributes = {}, {}
    for position, name in enumerate(specialization.kernel.parameters):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = described[name].type
        if described[name].aligned:
            attributes[(position,)] = [["tt.divisibility", ALIGNMENT]]
    return ASTSource(function_of(specialization.kernel), signature, constants, attributes)


def compile_kernel(specialization: Specialization, target: GPUTarget) -> Any:
    """Triton's CompiledKernel, with all proxy fences; from Triton's disk cache if it is there."""
    options = {
        "num_warps": specialization.num_warps,
        "num_stages": specialization.num_stages,
        # Off in kernels of rows: there two lanes each add the other's product to their own. Fused,
        # each would leave its own product unrounded, and their sums would differ. In kernels of
        # tiles a thread adds up two columns or more before it exchanges anything.
        "enable_fp_fusion": "INPUT_PRECISION" in dict(specialization.constants),
    }
    source = source_of(specialization)
    kernel = triton.compile(source, target=target, options=options)
    if target.backend == "cuda":
        ptx = with_fences(kernel.asm["ptx"])
        if ptx != kernel.asm["ptx"]:
            # Named by its content: Triton's cache key has the name of ``ir_override`` only.
            name = f"{hashlib.sha256(ptx.encode()).hexdigest()}.ptx"
            options["ir_override"] = get_cache_manager(kernel.hash).put(ptx, name)
            kernel = triton.compile(source, target=target, options=options)
    return kernel


def nvidia_target(arch: str) -> GPUTarget:
    """Triton's target for ``arch``, a compute capability such as ``"sm_90"``."""
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def binary_of(kernel: Any) -> Binary | None:
    """The machine code of ``kernel``; ``None`` if it needs more than csrc/cuda provides."""
    metadata = kernel.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas > 1:
        return None
    threads = metadata.num_warps * metadata.target.warp_size
    return Binary(kernel.asm["cubin"], metadata.name, metadata.shared, threads)
