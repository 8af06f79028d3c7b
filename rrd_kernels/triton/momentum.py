"""The momentum memory's update, as a kernel and its launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rrd_kernels.triton.plan import row_block
from rrd_kernels.triton.rows import load_row, write_slot
from rrd_kernels.triton.step import Launch, row_warps


@triton.jit
def update(
    memory,
    index,
    rows,
    size,
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
    """One program a new row; of those for one row of the memory, the last one writes. DTYPE is what
    the row is computed in."""
    i = tl.program_id(0)
    slot = tl.load(index + tl.cast(i, tl.int64) * index_dim)
    again = tl.zeros((BLOCK_B,), tl.int32)
    for first in tl.range(i + 1, batch, BLOCK_B):
        j = first + tl.arange(0, BLOCK_B)
        later = tl.load(index + j.to(tl.int64) * index_dim, mask=j < batch, other=-1)
        again += (later == slot).to(tl.int32)
    last = tl.sum(again, axis=0) == 0
    if last & (slot >= 0) & (slot < size):
        key = load_row(rows, i, rows_row, rows_dim, DIM, BLOCK_D, DTYPE)
        write_slot(memory, slot, memory_row, memory_dim, key, momentum, MOMENTUM, DIM, BLOCK_D)


def update_launch(memory: Tensor, index: Tensor, rows: Tensor, momentum: float) -> Launch:
    """The update of B >= 1 rows."""
    (size, dim), batch = memory.shape, rows.shape[0]
    double = torch.float64 in (memory.dtype, rows.dtype)
    return Launch(
        update,
        (batch,),
        {
            "memory": memory,
            "index": index,
            "rows": rows,
            "size": size,
            "batch": batch,
            "index_dim": index.stride(0),
            "rows_row": rows.stride(0),
            "rows_dim": rows.stride(1),
            "memory_row": memory.stride(0),
            "memory_dim": memory.stride(1),
            "momentum": momentum,
        },
        {
            "DTYPE": tl.float64 if double else tl.float32,
            "MOMENTUM": momentum != 0,
            "DIM": dim,
            "BLOCK_D": row_block(dim),
            "BLOCK_B": 1024,
        },
        row_warps(dim),
    )
