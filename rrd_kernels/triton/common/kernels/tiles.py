"""Loads tiles of the memory and blocks of queries, and computes their logits."""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    memory,
    first,
    size,
    stride_row,
    stride_dim,
    at,
    OPERAND: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows ``first ...`` of the memory, elements ``at ...``: [BLOCK_N, BLOCK_D], zero outside."""
    rows = first + tl.arange(0, BLOCK_N)
    d = at + tl.arange(0, BLOCK_D)
    address = (
        memory + rows.to(tl.int64)[:, None] * stride_row + d.to(tl.int64)[None, :] * stride_dim
    )
    if EVEN:
        if DIM % BLOCK_D == 0:
            tile = tl.load(address)
        else:
            tile = tl.load(address, mask=d[None, :] < DIM, other=0.0)
    else:
        tile = tl.load(address, mask=(rows[:, None] < size) & (d[None, :] < DIM), other=0.0)
    if memory.dtype.element_ty == tl.float64:
        tile = tile.to(tl.float32)
    return tile.to(OPERAND)


@triton.jit
def load_queries(
    queries,
    rows,
    count,
    at,
    DIM_PAD: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    d = at + tl.arange(0, BLOCK_K)
    address = queries + rows.to(tl.int64)[:, None] * DIM_PAD + d[None, :]
    return tl.load(address, mask=(rows[:, None] < count) & (d[None, :] < DIM_PAD), other=0.0)


@triton.jit
def query_rows(samples, batch):
    """Rows of the samples' queries. Beyond the batch it is row 2B, which load_queries masks."""
    inside = samples < batch
    return tl.where(inside, samples, 2 * batch), tl.where(inside, samples + batch, 2 * batch)


@triton.jit
def logits_of(
    q,
    queries,
    rows,
    count,
    memory,
    first,
    size,
    stride_row,
    stride_dim,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Logits [BLOCK_M, BLOCK_N] of a tile, -inf beyond the memory, and the tile's first BLOCK_K
    elements (whole rows if DIM <= BLOCK_K). UNROLL keeps all queries in registers."""
    logits = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    tile = load_tile(
        memory, first, size, stride_row, stride_dim, 0, OPERAND, EVEN, DIM, BLOCK_N, BLOCK_K
    )
    logits = tl.dot(q, tl.trans(tile), logits, input_precision=INPUT_PRECISION)
    if UNROLL:
        for at in tl.static_range(BLOCK_K, DIM, BLOCK_K):
            more_q = load_queries(queries, rows, count, at, DIM_PAD, BLOCK_K)
            more = load_tile(
                memory,
                first,
                size,
                stride_row,
                stride_dim,
                at,
                OPERAND,
                EVEN,
                DIM,
                BLOCK_N,
                BLOCK_K,
            )
            logits = tl.dot(more_q, tl.trans(more), logits, input_precision=INPUT_PRECISION)
    else:
        for at in tl.range(BLOCK_K, DIM, BLOCK_K):
            more_q = load_queries(queries, rows, count, at, DIM_PAD, BLOCK_K)
            more = load_tile(
                memory,
                first,
                size,
                stride_row,
                stride_dim,
                at,
                OPERAND,
                EVEN,
                DIM,
                BLOCK_N,
                BLOCK_K,
            )
            logits = tl.dot(more_q, tl.trans(more), logits, input_precision=INPUT_PRECISION)
    if not EVEN:
        inside = first + tl.arange(0, BLOCK_N) < size
        logits = tl.where(inside[None, :], logits, float("-inf"))
    return logits, tile
