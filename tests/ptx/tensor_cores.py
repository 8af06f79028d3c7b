"""Matrices among the registers of warps and in shared memory, and their products.

Layouts: PTX ISA, "Matrix Fragments for mma.m16n8k8 / m16n8k16", "Register Fragments and Shared
Memory Matrix Layouts" and "Matrix Descriptor Format" (wgmma); strides of transposed operands:
CUTLASS, include/cute/arch/mma_sm90_desc.hpp. A lane is 4 g + t. Products and sums are in float64
and rounded once to float32; how tensor cores round is not documented.
"""

import numpy as np

from ptx.arithmetic import Array, bfloat16_to_float, canonical
from ptx.program import PtxError

#: Elements of a 32-bit register.
PER_REGISTER = {"bf16": 2, "f16": 2, "tf32": 1}


def elements(words: Array, format_: str) -> Array:
    """[..., n] of 32 bits as float64 [..., n * PER_REGISTER]."""
    words = np.ascontiguousarray(words)
    if format_ == "tf32":  # the lower 13 bits are not looked at
        return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if format_ == "f16":
        return words.view(np.float16).astype(np.float64)
    return bfloat16_to_float(words.view(np.uint16)).astype(np.float64)


def left(registers: list[Array], format_: str) -> Array:
    """A's four registers [threads] as matrices [warps, 16, 8 * PER_REGISTER]."""
    e = PER_REGISTER[format_]
    parts = elements(np.stack(registers)[..., None], format_)
    parts = parts.reshape(2, 2, -1, 8, 4, e)  # half of k, half of rows, warp, g, t, element
    return parts.transpose(2, 1, 3, 0, 4, 5).reshape(-1, 16, 8 * e)


def right(registers: list[Array], format_: str) -> Array:
    """B's two registers as matrices [warps, 8 * PER_REGISTER, 8]."""
    e = PER_REGISTER[format_]
    parts = elements(np.stack(registers)[..., None], format_).reshape(2, -1, 8, 4, e)
    return parts.transpose(1, 0, 3, 4, 2).reshape(-1, 8 * e, 8)


def accumulated(registers: list[Array]) -> Array:
    """C's N / 2 registers as matrices [warps, 16, N]."""
    warps = len(registers[0]) // 32
    parts = np.stack(registers).view(np.float32).reshape(-1, 2, 2, warps, 8, 4)
    return parts.transpose(3, 1, 4, 0, 5, 2).reshape(warps, 16, -1)


def scattered(matrices: Array) -> list[Array]:
    """The inverse of :func:`accumulated`, rounded to float32."""
    warps, _, width = matrices.shape
    parts = canonical(matrices.astype(np.float32)).reshape(warps, 2, 8, width // 8, 4, 2)
    parts = parts.transpose(3, 1, 5, 0, 2, 4)
    return list(np.ascontiguousarray(parts).view(np.uint32).reshape(width // 2, -1))


def chunks(descriptor: int, rows: int, transposed: bool) -> Array:
    """Addresses of an operand's 16-byte parts. [rows, 2], a row's 32 bytes along k; if
    ``transposed`` [16, rows / 8], for each of 16 along k."""
    start, leading, stride = ((descriptor >> at & 0x3FFF) * 16 for at in (0, 16, 32))
    swizzle = (0, 128, 64, 32)[descriptor >> 62 & 3]  # bytes of a row, permuted among eight rows
    if descriptor >> 49 & 7 or not swizzle:
        raise PtxError("a matrix descriptor with a base offset, or without a swizzle")
    span = swizzle // 16
    if transposed:
        k, part = np.arange(16)[:, None], np.arange(rows // 8)[None, :]
        address = start + k // 8 * stride + k % 8 * swizzle + part // span * leading
        address = address + part % span * 16
    else:
        row, part = np.arange(rows)[:, None], np.arange(2)[None, :]
        address = start + row // 8 * stride + row % 8 * swizzle + part * 16
    return address ^ (address >> 7 & span - 1) << 4


def operand(words: Array, format_: str, rows: int, transposed: bool) -> Array:
    """What lies at :func:`chunks`, as a matrix [rows, k] in float64."""
    matrix = elements(words.reshape(16 if transposed else rows, -1), format_)
    return matrix.T if transposed else matrix
