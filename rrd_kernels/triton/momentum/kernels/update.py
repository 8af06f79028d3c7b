"""The update of the momentum memory."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import load_row, write_slot


@triton.jit
def update(
    memory,
    index,
    rows,
    n_data,
    batch,
    index_dim,
    rows_row,
    rows_dim,
    memory_row,
    memory_dim,
    momentum,
    DTYPE: tl.constexpr,
    MOMENTUM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """One program per new row. If several update the same row of the memory, the last one wins.
    Rows are computed in DTYPE."""
    i = tl.program_id(0)
    slot = tl.load(index + tl.cast(i, tl.int64) * index_dim)
    again = tl.zeros((BLOCK_B,), tl.int32)
    for first in tl.range(i + 1, batch, BLOCK_B):
        j = first + tl.arange(0, BLOCK_B)
        later = tl.load(index + j.to(tl.int64) * index_dim, mask=j < batch, other=-1)
        again += (later == slot).to(tl.int32)
    last = tl.sum(again, axis=0) == 0
    if last & (slot >= 0) & (slot < n_data):
        key = load_row(rows, i, rows_row, rows_dim, DIM, BLOCK_D, DTYPE)
        write_slot(memory, slot, memory_row, memory_dim, key, momentum, MOMENTUM, DIM, BLOCK_D)
