"""What instructions without memory and without other threads compute, on arrays over threads.

A division, a root or an exponential is computed in float64 and rounded once, whatever the
hardware's approximation is. A fused multiply-add is rounded twice: to float64 (for float64 operands
to longdouble), then to its type.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.program import PtxError

Array = np.ndarray[Any, np.dtype[Any]]
Function = Callable[..., Array]

#: How a type's bits are seen.
DTYPES = {
    "pred": np.dtype(np.bool_),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    **{f"{kind}{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64) for kind in "bu"},
    **{f"s{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
    "bf16": np.dtype(np.uint16),
    **dict.fromkeys(("bf16x2", "f16x2", "tf32"), np.dtype(np.uint32)),
}


#: The NaN that every operation returns, whatever NaN it was given.
NAN = {8: np.uint64(2**63 - 1).view(np.float64), 4: np.uint32(2**31 - 1).view(np.float32)}


def canonical(value: Array) -> Array:
    """Floats with one NaN only."""
    nan = np.isnan(value)
    return np.where(nan, NAN[value.itemsize], value) if nan.any() else value


def bfloat16_to_float(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_bfloat16(value: Array) -> Array:
    """To the nearest, ties to even."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def _to_tf32(value: Array) -> Array:
    """To the nearest of ten mantissa bits, ties away from zero."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(value), rounded, bits)


def _pair(convert: Function) -> Function:
    """The first operand becomes the upper half."""

    def both(upper: Array, lower: Array) -> Array:
        high, low = (convert(value).view(np.uint16).astype("u4") for value in (upper, lower))
        return high << np.uint32(16) | low

    return both


def _flushed(value: Array) -> Array:
    """Subnormal numbers become zeros of their sign (``.ftz``)."""
    return np.where(np.abs(value) < np.float32(2**-126), np.copysign(0 * value, value), value)


def _flushing(function: Function) -> Function:
    return lambda *values: _flushed(function(*map(_flushed, values)))


def _fma(a: Array, b: Array, c: Array) -> Array:
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(a.dtype)


def _field(value: Array, start: Array, length: Array) -> Array:
    """Bits ``start ...``; a signed type's are extended by their sign."""
    if np.any(start + length > 8 * value.itemsize):
        raise PtxError("unknown operands")
    kept = value.dtype.type(8 * value.itemsize) - length.astype(value.dtype)
    return (value << (kept - start.astype(value.dtype))) >> kept


def _shift(operation: Function) -> Function:
    """By the type's width or more nothing but the sign is left."""

    def shifted(value: Array, by: Array) -> Array:
        last = 8 * value.itemsize - 1
        result = operation(value, np.minimum(by, last).astype(value.dtype))
        gone = value >> value.dtype.type(last) if value.dtype.kind == "i" else 0 * value
        return np.where(by <= last, result, gone)

    return shifted


def _permuted(a: Array, b: Array, selector: Array) -> Array:
    """Of the eight bytes of ``a`` and ``b`` those that an immediate names."""
    picked = [int(selector) >> 4 * i & 15 for i in range(4)]
    if max(picked) > 7:
        raise PtxError("unknown operands")
    eight = np.stack(np.broadcast_arrays(a, b), axis=-1).view(np.uint8)
    return np.ascontiguousarray(eight[..., picked]).view(np.uint32)[..., 0]


def _remainder(a: Array, b: Array) -> Array:
    if not np.all(b):
        raise PtxError("divides by zero")
    return np.fmod(a, b)


def _wide(a: Array, b: Array) -> Array:
    wider = {"i": np.int64, "u": np.uint64}[a.dtype.kind]
    return a.astype(wider) * b.astype(wider)


#: What an instruction computes, the types it takes and the one it returns.
Operation = tuple[Function, list[str], str]


#: Operations on one type: by name, the function, its operands and the kinds of types.
_ALIKE: dict[str, tuple[Function, int, str]] = {
    name: (function, arity, kinds)
    for function, arity, kinds, names in (
        (np.add, 2, "suf", "add add.rn"),
        (np.subtract, 2, "suf", "sub sub.rn"),
        (np.multiply, 2, "f", "mul mul.rn"),
        (np.multiply, 2, "su", "mul.lo"),
        (lambda a, b, c: a * b + c, 3, "su", "mad.lo"),
        (_fma, 3, "f", "fma.rn"),
        (_flushing(_fma), 3, "f", "fma.rn.ftz"),
        (np.fmin, 2, "suf", "min"),
        (np.fmax, 2, "suf", "max"),
        (np.abs, 1, "sf", "abs"),
        (_flushing(np.abs), 1, "f", "abs.ftz"),
        (np.negative, 1, "sf", "neg"),
        (lambda a, b: (a - _remainder(a, b)) // b, 2, "su", "div"),
        (np.divide, 2, "f", "div.rn div.full div.approx"),
        (_remainder, 2, "su", "rem"),
        (np.sqrt, 1, "f", "sqrt.rn"),
        (_flushing(lambda a: np.exp2(a.astype(float)).astype(a.dtype)), 1, "f", "ex2.approx.ftz"),
        (np.bitwise_and, 2, "pb", "and"),
        (np.bitwise_or, 2, "pb", "or"),
        (np.bitwise_xor, 2, "pb", "xor"),
        (np.invert, 1, "pb", "not"),
        (lambda a: a, 1, "pbsuf", "mov"),
        (_permuted, 3, "b", "prmt"),
    )
    for name in names.split()
}
_COMPARISONS: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "num": lambda a, b: a == a,
}  # fmt: skip
_CONVERSIONS = {
    "cvt.f32.bf16": (bfloat16_to_float, ["bf16"], "f32"),
    "cvt.f64.bf16": (lambda a: bfloat16_to_float(a).astype(float), ["bf16"], "f64"),
    "cvt.rn.bf16.f32": (_to_bfloat16, ["f32"], "bf16"),
    "cvt.rn.bf16x2.f32": (_pair(_to_bfloat16), ["f32", "f32"], "bf16x2"),
    "cvt.rn.f16x2.f32": (_pair(lambda a: a.astype("f2")), ["f32", "f32"], "f16x2"),
    "cvt.rna.tf32.f32": (_to_tf32, ["f32"], "tf32"),
}
#: Without rounding: among integers, and to a wider float; with it to a float.
_CONVERSION = re.compile(r"cvt\.(?:([su]\d+)\.[su]\d+|(f32|f64)\.f(?:16|32)|rn\.(f\d+)\.[suf]\d+)")


def operation(opcode: str) -> Operation | None:
    """What an opcode means, if it is of these."""
    name, _, type_ = opcode.rpartition(".")
    base, _, comparison = name.partition(".")
    function, arity, kinds = _ALIKE.get(name, (None, 0, ""))
    if function and type_[0] in kinds:
        return (function, [type_] * arity, type_)
    if name in ("mul.wide", "mad.wide") and type_ in ("s32", "u32"):
        wider, third = f"{type_[0]}64", [f"{type_[0]}64"] * (base == "mad")
        function = (lambda a, b, c: _wide(a, b) + c) if third else _wide
        return (function, [type_, type_, *third], wider)
    if name in ("shl", "shr"):
        shift = _shift(np.left_shift if name == "shl" else np.right_shift)
        return (shift, [type_, "u32"], type_)
    if name == "bfe":
        return (_field, [type_, "u32", "u32"], type_)
    if name == "selp":
        return (lambda a, b, p: np.where(p, a, b), [type_, type_, "pred"], type_)
    if base == "setp" and comparison.removesuffix("u") in _COMPARISONS:
        compare, unordered = _COMPARISONS[comparison.removesuffix("u")], comparison[-1] == "u"
        if type_[0] != "f":
            return (compare, [type_, type_], "pred")

        def compare_floats(a: Array, b: Array) -> Array:
            return np.where(np.isnan(a) | np.isnan(b), unordered, compare(a, b))

        return (compare_floats, [type_, type_], "pred")
    if match := _CONVERSION.fullmatch(opcode):
        to = match[1] or match[2] or match[3]
        return (lambda a: a.astype(DTYPES[to]), [type_], to)
    return _CONVERSIONS.get(opcode)
