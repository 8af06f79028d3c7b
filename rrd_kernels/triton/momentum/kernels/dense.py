"""The sampled loss where most rows are sampled: multiplies all rows, and counts each as often as
the sample's columns name it.
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import TINY, round_to_tf32
from rrd_kernels.triton.common.kernels.splits import store_statistics
from rrd_kernels.triton.common.kernels.tiles import (
    load_queries,
    load_tile,
    logits_of,
    query_rows,
)
from rrd_kernels.triton.momentum.kernels.softmax import (
    accumulate,
    gain_of,
    logit_of,
    softmaxes_of,
    weights_of,
)


@triton.jit
def count_columns(
    contrast_idx,
    counts,
    blocks,
    columns,
    n_data,
    contrast_row,
    contrast_dim,
    counts_row,
    BLOCK_P: tl.constexpr,
):
    """A program counts BLOCK_P columns of a sample in ``counts`` [B, > n_data], zero before.

    Indices outside the memories are counted behind the rows, at ``n_data``.
    """
    i = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    wanted = p < columns
    row = tl.load(contrast_idx + i * contrast_row + p * contrast_dim, mask=wanted, other=0)
    place = tl.where((row >= 0) & (row < n_data), row, n_data)
    one = tl.full((BLOCK_P,), 1, tl.int32)
    tl.atomic_add(counts + i * counts_row + place, one, mask=wanted, sem="relaxed")


@triton.jit
def load_counts(
    counts,
    samples,
    batch,
    first,
    n_data,
    counts_row,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """How often each sample names rows ``first ...``: [BLOCK_M, BLOCK_N], zero outside."""
    rows = first + tl.arange(0, BLOCK_N)
    mask = samples[:, None] < batch
    if not EVEN:
        mask = mask & (rows[None, :] < n_data)
    address = counts + samples.to(tl.int64)[:, None] * counts_row + rows[None, :]
    return tl.load(address, mask=mask, other=0).to(tl.float32)


@triton.jit
def add_rows(output, largest, weights, tile, OPERAND: tl.constexpr, INPUT_PRECISION: tl.constexpr):
    """Adds the rows of ``tile`` times ``weights`` [M, N] to ``output`` [M, D]; returns these sums,
    for float16 in units of ``largest`` / 2^15, and the largest weight [M] so far."""
    if OPERAND == tl.float16:
        # Scales the weights into the range of float16: the largest so far becomes 2^15.
        larger = tl.maximum(largest, tl.max(tl.abs(weights), axis=1))
        weights *= (32768.0 / larger)[:, None]
        output *= (largest / larger)[:, None]
        largest = larger
    if INPUT_PRECISION == "tf32" and OPERAND == tl.float32:
        weights = round_to_tf32(weights)
    output = tl.dot(weights.to(OPERAND), tile, output, input_precision=INPUT_PRECISION)
    return output, largest


@triton.jit
def both_logits(
    q_s,
    q_t,
    queries,
    rows_s,
    rows_t,
    batch,
    memory_v1,
    memory_v2,
    first,
    n_data,
    v1_row,
    v1_dim,
    v2_row,
    v2_dim,
    gain_s,
    gain_t,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    EXPONENTIAL: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The student's and the teacher's logits [BLOCK_M, BLOCK_N] of a tile, and the first BLOCK_K
    elements of the tile of ``memory_v2``."""
    a, _ = logits_of(
        q_t, queries, rows_t, 2 * batch, memory_v1, first, n_data, v1_row, v1_dim, OPERAND,
        INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
        False,
    )  # fmt: skip
    b, tile = logits_of(
        q_s, queries, rows_s, 2 * batch, memory_v2, first, n_data, v2_row, v2_dim, OPERAND,
        INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
        False,
    )  # fmt: skip
    return logit_of(b, gain_s, EXPONENTIAL), logit_of(a, gain_t, EXPONENTIAL), tile


@triton.jit
def dense_statistics(
    queries,
    memory_v1,
    memory_v2,
    counts,
    normalizers,
    stats,
    batch,
    n_data,
    v1_row,
    v1_dim,
    v2_row,
    v2_dim,
    counts_row,
    normalizers_dim,
    tiles_per_split,
    scale_s,
    scale_t,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    EXPONENTIAL: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid: blocks of samples, splits. A sample with an index outside the memories gets NaN."""
    split = tl.program_id(1)
    samples = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_s, rows_t = query_rows(samples, batch)
    q_s = load_queries(queries, rows_s, 2 * batch, 0, DIM_PAD, BLOCK_K)
    q_t = load_queries(queries, rows_t, 2 * batch, 0, DIM_PAD, BLOCK_K)
    gain_s = gain_of(normalizers, 0, normalizers_dim, scale_s, EXPONENTIAL)
    gain_t = gain_of(normalizers, 1, normalizers_dim, scale_t, EXPONENTIAL)

    begin = split * tiles_per_split * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, n_data)
    shift_s = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    shift_t = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total_s = tl.zeros((BLOCK_M,), tl.float32)
    total_t = tl.zeros((BLOCK_M,), tl.float32)
    cross = tl.zeros((BLOCK_M,), tl.float32)
    for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        b, a, _ = both_logits(
            q_s, q_t, queries, rows_s, rows_t, batch, memory_v1, memory_v2, first, n_data, v1_row,
            v1_dim, v2_row, v2_dim, gain_s, gain_t, OPERAND, INPUT_PRECISION, EXPONENTIAL,
            DIM, DIM_PAD, EVEN, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        wanted = load_counts(counts, samples, batch, first, n_data, counts_row, EVEN, BLOCK_N)
        shift_s, total_s, shift_t, total_t, cross = accumulate(
            shift_s, total_s, shift_t, total_t, cross, b, a, wanted
        )

    if split == 0:
        address = counts + samples.to(tl.int64) * counts_row + n_data
        missing = tl.load(address, mask=samples < batch, other=0)
        total_s = tl.where(missing > 0, float("nan"), total_s)
    store_statistics(stats, split, samples, batch, shift_s, total_s, shift_t, total_t, cross)


@triton.jit
def dense_gradient(
    queries,
    memory_v1,
    memory_v2,
    counts,
    normalizers,
    stats,
    partials,
    batch,
    n_data,
    splits,
    v1_row,
    v1_dim,
    v2_row,
    v2_dim,
    counts_row,
    normalizers_dim,
    tiles_per_split,
    scale_s,
    scale_t,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    EXPONENTIAL: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid: blocks of samples, splits, blocks of D. ``partials[split, sample]`` = sum of weight *
    row."""
    split = tl.program_id(1)
    at = tl.program_id(2) * BLOCK_D
    samples = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    shift_s, share_s, shift_t, share_t = softmaxes_of(
        stats, samples, batch, splits, SPLIT_BLOCK, BLOCK_M
    )
    rows_s, rows_t = query_rows(samples, batch)
    q_s = load_queries(queries, rows_s, 2 * batch, 0, DIM_PAD, BLOCK_K)
    q_t = load_queries(queries, rows_t, 2 * batch, 0, DIM_PAD, BLOCK_K)
    gain_s = gain_of(normalizers, 0, normalizers_dim, scale_s, EXPONENTIAL)
    gain_t = gain_of(normalizers, 1, normalizers_dim, scale_t, EXPONENTIAL)

    begin = split * tiles_per_split * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, n_data)
    largest = tl.full((BLOCK_M,), TINY, tl.float32)
    output = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        b, a, tile = both_logits(
            q_s, q_t, queries, rows_s, rows_t, batch, memory_v1, memory_v2, first, n_data, v1_row,
            v1_dim, v2_row, v2_dim, gain_s, gain_t, OPERAND, INPUT_PRECISION, EXPONENTIAL,
            DIM, DIM_PAD, EVEN, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if DIM > BLOCK_K:
            tile = load_tile(
                memory_v2, first, n_data, v2_row, v2_dim, at, OPERAND, EVEN, DIM, BLOCK_N, BLOCK_D
            )
        wanted = load_counts(counts, samples, batch, first, n_data, counts_row, EVEN, BLOCK_N)
        weights = weights_of(b, a, wanted, shift_s, share_s, shift_t, share_t, EXPONENTIAL)
        output, largest = add_rows(output, largest, weights, tile, OPERAND, INPUT_PRECISION)

    if OPERAND == tl.float16:
        output *= (largest / 32768.0)[:, None]
    d = at + tl.arange(0, BLOCK_D)
    place = (split.to(tl.int64) * batch + samples)[:, None] * DIM_PAD + d[None, :]
    inside = (samples[:, None] < batch) & (d[None, :] < DIM_PAD)
    tl.store(partials + place, output, mask=inside)
