"""What the kernels do with one row: normalise it, make it a query, write it into the memory."""

import triton
import triton.language as tl

# The default of torch.nn.functional.normalize.
NORM_EPS = tl.constexpr(1e-12)

# A row whose largest element is below this is not scaled by it: the reciprocal could overflow. Its
# squares may underflow, but its norm is far below NORM_EPS anyway.
TINY = tl.constexpr(1e-30)


@triton.jit
def load_row(
    base,
    row,
    stride_row,
    stride_dim,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr = tl.float32,
):
    """Row ``row`` as DTYPE [BLOCK_D], zero beyond DIM."""
    d = tl.arange(0, BLOCK_D)
    address = base + tl.cast(row, tl.int64) * stride_row + d.to(tl.int64) * stride_dim
    return tl.load(address, mask=d < DIM, other=0.0).to(DTYPE)


@triton.jit
def quotient(z, divisor):
    """``z / divisor``; divisor is a scalar of 1e-30 or more. float64 takes one reciprocal, at one
    ulp more error: its division is a subroutine, called for each element."""
    return z * (1.0 / divisor) if z.dtype == tl.float64 else z / divisor


@triton.jit
def unit_row(z):
    """``z / max(|z|, 1e-12)`` and that divisor, without overflow of the squares; NaN stays NaN."""
    largest = tl.max(tl.abs(z), axis=0)
    scale = tl.where(largest > TINY, largest, 1.0)
    scaled = quotient(z, scale)
    square = tl.sum(scaled * scaled, axis=0)
    root = tl.sqrt(square) if square.dtype == tl.float64 else tl.sqrt_rn(square)
    # A clamp that keeps NaN: comparisons with NaN are false.
    small = root * scale < NORM_EPS
    divisor = tl.where(small, NORM_EPS, root * scale)
    unit = quotient(tl.where(small, z, scaled), tl.where(small, NORM_EPS, root))
    return unit, divisor


@triton.jit
def round_to_tf32(value):
    """The nearest number of ten mantissa bits; NaN and infinity are kept."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x0FFF + ((bits >> 13) & 1)) & -8192).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(value) < float("inf"), rounded, value)


@triton.jit
def query_of(unit, scale, OPERAND: tl.constexpr, TF32: tl.constexpr):
    """A unit row times ``scale`` = log2(e) / tau, rounded once to the products' operands."""
    query = unit * scale
    if TF32:
        query = round_to_tf32(query)
    return query.to(OPERAND)


@triton.jit
def slot_of(ptr, size):
    """``ptr`` modulo ``size``, in [0, size): a loaded checkpoint may hold any integer."""
    at = ptr % size
    return tl.where(at < 0, at + size, at)


@triton.jit
def first_slot(ptr, batch, size, NEWEST_FIRST: tl.constexpr):
    """Where the first of ``batch`` rows is enqueued: at ``ptr``, or so far below it that the last
    one is just below it."""
    at = slot_of(ptr, size)
    if NEWEST_FIRST:
        at = slot_of(at - batch, size)
    return at


@triton.jit
def moved_pointer(first, batch, size, NEWEST_FIRST: tl.constexpr):
    """The pointer after ``batch`` rows were enqueued from slot ``first`` on."""
    at = first
    if not NEWEST_FIRST:
        at = (first + batch) % size
    return at


@triton.jit
def write_slot(
    memory,
    slot,
    stride_row,
    stride_dim,
    key,
    momentum,
    MOMENTUM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``slot <- normalize(momentum * slot + (1 - momentum) * normalize(key))``; a key that is not
    finite leaves the slot alone."""
    d = tl.arange(0, BLOCK_D)
    kept = tl.where(tl.sum(key * 0.0, axis=0) == 0.0, DIM, 0)
    new, _ = unit_row(key)
    if MOMENTUM:
        old = load_row(memory, slot, stride_row, stride_dim, DIM, BLOCK_D, key.dtype)
        new, _ = unit_row(momentum * old + (1.0 - momentum) * new)
    address = memory + tl.cast(slot, tl.int64) * stride_row + d.to(tl.int64) * stride_dim
    if memory.dtype.element_ty != tl.float64:
        new = new.to(tl.float32)  # float64 converts to bfloat16 only through float32
    tl.store(address, new.to(memory.dtype.element_ty), mask=d < kept)
