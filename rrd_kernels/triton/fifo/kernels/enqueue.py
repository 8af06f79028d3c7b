"""The enqueue of ``enqueue_``; a step enqueues in its first or last kernel."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import load_row, slot_of, write_slot


@triton.jit
def enqueue(
    memory,
    ptr,
    keys,
    size,
    keys_row,
    keys_dim,
    memory_row,
    memory_dim,
    momentum,
    DTYPE: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per key; rows are computed in DTYPE."""
    i = tl.program_id(0)
    slot = (slot_of(tl.load(ptr), size) + i) % size
    key = load_row(keys, i, keys_row, keys_dim, DIM, BLOCK_D, DTYPE)
    write_slot(memory, slot, memory_row, memory_dim, key, momentum, MOMENTUM, DIM, BLOCK_D)


@triton.jit
def advance(ptr, batch, size):
    """Advances ptr, in a second launch: by then every program of ``enqueue`` has read it."""
    tl.store(ptr, (slot_of(tl.load(ptr), size) + batch) % size)
