"""The sampled loss where few rows are sampled: reads them in place, multiplies in float32."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.splits import store_statistics
from rrd_kernels.triton.momentum.kernels.softmax import (
    accumulate,
    gain_of,
    logit_of,
    softmaxes_of,
    weights_of,
)


@triton.jit
def load_index(contrast_idx, i, p, columns, n_data, contrast_row, contrast_dim):
    """The rows that columns ``p`` of sample ``i`` name, and whether they are in the memories."""
    address = contrast_idx + i.to(tl.int64) * contrast_row + p.to(tl.int64) * contrast_dim
    index = tl.load(address, mask=p < columns, other=-1)
    return index, (index >= 0) & (index < n_data)


@triton.jit
def load_rows(
    memory, index, present, stride_row, stride_dim, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows [BLOCK_P, BLOCK_D] in the memory's dtype; zero where not ``present``."""
    d = tl.arange(0, BLOCK_D)
    address = memory + index[:, None] * stride_row + d.to(tl.int64)[None, :] * stride_dim
    return tl.load(address, mask=present[:, None] & (d[None, :] < DIM), other=0.0)


@triton.jit
def load_query(queries, row, DIM_PAD: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    return tl.load(queries + tl.cast(row, tl.int64) * DIM_PAD + d, mask=d < DIM_PAD, other=0.0)


@triton.jit
def products_with(
    query,
    memory,
    index,
    present,
    stride_row,
    stride_dim,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Products [BLOCK_P] of one query with rows; NaN where not ``present``."""
    rows = load_rows(memory, index, present, stride_row, stride_dim, DIM, BLOCK_D)
    products = tl.sum(rows.to(query.dtype) * query[None, :], axis=1)
    return tl.where(present, products, float("nan"))


@triton.jit
def gather_statistics(
    queries,
    memory_v1,
    memory_v2,
    contrast_idx,
    normalizers,
    logits,
    stats,
    batch,
    n_data,
    columns,
    v1_row,
    v1_dim,
    v2_row,
    v2_dim,
    contrast_row,
    contrast_dim,
    normalizers_dim,
    columns_per_split,
    scale_s,
    scale_t,
    EXPONENTIAL: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: samples, splits of the columns. With NEED_GRAD the logits [2, B, P] are kept."""
    i, split = tl.program_id(0), tl.program_id(1)
    query_s = load_query(queries, i, DIM_PAD, BLOCK_D)
    query_t = load_query(queries, batch + i, DIM_PAD, BLOCK_D)
    gain_s = gain_of(normalizers, 0, normalizers_dim, scale_s, EXPONENTIAL)
    gain_t = gain_of(normalizers, 1, normalizers_dim, scale_t, EXPONENTIAL)
    kept = logits + i.to(tl.int64) * columns

    begin = split * columns_per_split
    end = tl.minimum(begin + columns_per_split, columns)
    shift_s = tl.full((1,), float("-inf"), tl.float32)
    shift_t = tl.full((1,), float("-inf"), tl.float32)
    total_s = tl.zeros((1,), tl.float32)
    total_t = tl.zeros((1,), tl.float32)
    cross = tl.zeros((1,), tl.float32)
    for first in tl.range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        index, present = load_index(contrast_idx, i, p, columns, n_data, contrast_row, contrast_dim)
        a = products_with(query_t, memory_v1, index, present, v1_row, v1_dim, DIM, BLOCK_D)
        b = products_with(query_s, memory_v2, index, present, v2_row, v2_dim, DIM, BLOCK_D)
        b = logit_of(b, gain_s, EXPONENTIAL)
        a = logit_of(a, gain_t, EXPONENTIAL)
        if NEED_GRAD:
            tl.store(kept + p, b, mask=p < columns)
            other = tl.cast(batch, tl.int64) * columns
            tl.store(kept + other + p, a, mask=p < columns)
        wanted = (p < columns).to(tl.float32)[None, :]
        shift_s, total_s, shift_t, total_t, cross = accumulate(
            shift_s, total_s, shift_t, total_t, cross, b[None, :], a[None, :], wanted
        )
    sample = i + tl.arange(0, 1)
    store_statistics(stats, split, sample, batch, shift_s, total_s, shift_t, total_t, cross)


@triton.jit
def gather_gradient(
    memory_v2,
    contrast_idx,
    logits,
    stats,
    partials,
    batch,
    n_data,
    columns,
    splits,
    v2_row,
    v2_dim,
    contrast_row,
    contrast_dim,
    columns_per_split,
    EXPONENTIAL: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: samples, splits. ``partials[split, sample]`` = sum of weight * row."""
    i, split = tl.program_id(0), tl.program_id(1)
    sample = i + tl.arange(0, 1)
    shift_s, share_s, shift_t, share_t = softmaxes_of(stats, sample, batch, splits, SPLIT_BLOCK, 1)
    kept = logits + i.to(tl.int64) * columns

    begin = split * columns_per_split
    end = tl.minimum(begin + columns_per_split, columns)
    output = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    for first in tl.range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        index, present = load_index(contrast_idx, i, p, columns, n_data, contrast_row, contrast_dim)
        b = tl.load(kept + p, mask=p < columns, other=0.0)
        other = tl.cast(batch, tl.int64) * columns
        a = tl.load(kept + other + p, mask=p < columns, other=0.0)
        wanted = (p < columns).to(tl.float32)[None, :]
        weights = weights_of(
            b[None, :], a[None, :], wanted, shift_s, share_s, shift_t, share_t, EXPONENTIAL
        )
        rows = load_rows(memory_v2, index, present, v2_row, v2_dim, DIM, BLOCK_D)
        output += tl.trans(weights) * rows.to(tl.float32)

    d = tl.arange(0, BLOCK_D)
    place = (split.to(tl.int64) * batch + i) * DIM_PAD + d
    tl.store(partials + place, tl.sum(output, axis=0), mask=d < DIM_PAD)
