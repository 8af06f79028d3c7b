"""The enqueue of ``enqueue_``; a step enqueues in its first or last kernel."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import (
    first_slot,
    load_row,
    moved_pointer,
    write_slot,
)


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
    NEWEST_FIRST: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per key; rows are computed in DTYPE."""
    i = tl.program_id(0)
    first = first_slot(tl.load(ptr), tl.num_programs(0), size, NEWEST_FIRST)
    slot = (first + i) % size
    key = load_row(keys, i, keys_row, keys_dim, DIM, BLOCK_D, DTYPE)
    write_slot(memory, slot, memory_row, memory_dim, key, momentum, MOMENTUM, DIM, BLOCK_D)


@triton.jit
def advance(ptr, batch, size, NEWEST_FIRST: tl.constexpr):
    """Moves ptr, in a second launch: by then every program of ``enqueue`` has read it."""
    first = first_slot(tl.load(ptr), batch, size, NEWEST_FIRST)
    tl.store(ptr, moved_pointer(first, batch, size, NEWEST_FIRST))
