"""The enqueue by itself, for callers of ``enqueue_``; within a step it is part of other kernels."""

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
    """One program a key; DTYPE is what the row is computed in."""
    i = tl.program_id(0)
    slot = (slot_of(tl.load(ptr), size) + i) % size
    key = load_row(keys, i, keys_row, keys_dim, DIM, BLOCK_D, DTYPE)
    write_slot(memory, slot, memory_row, memory_dim, key, momentum, MOMENTUM, DIM, BLOCK_D)


@triton.jit
def advance(ptr, batch, size):
    """Moves the ptr, in a launch of its own: every key's program has read it by then."""
    tl.store(ptr, (slot_of(tl.load(ptr), size) + batch) % size)
