"""The second kernel for the loss without the gradient: half the products.

A program takes the student's and the teacher's queries of the same samples, because the loss
multiplies a teacher's weight by the student's logit. With a hard target there is no teacher's
query: ROLES is 1.
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.splits import store_statistics
from rrd_kernels.triton.common.kernels.tiles import load_queries, logits_of, query_rows
from rrd_kernels.triton.fifo.kernels.attention import out_of_bounds, wait_for_queries


@triton.jit
def attend_loss(
    queries,
    memory,
    stats,
    batch,
    size,
    stride_row,
    stride_dim,
    tiles_per_split,
    bound_s,
    bound_t,
    ROLES: tl.constexpr,
    KL: tl.constexpr,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BOUNDED: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid: blocks of samples, splits.

    Writes ``stats[split]``: [0] the shifts and [1] the sums of weights of all queries; with two
    ROLES, [2] for each of the B samples the sum of teacher's weight * student's logit, of which KL
    subtracts the teacher's logit.
    """
    wait_for_queries(DEPENDENT)
    split = tl.program_id(1)
    samples = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    count = ROLES * batch
    rows_s, rows_t = query_rows(samples, batch)
    q_s = load_queries(queries, rows_s, count, 0, DIM_PAD, BLOCK_K)
    q_t = q_s
    if ROLES == 2:
        q_t = load_queries(queries, rows_t, count, 0, DIM_PAD, BLOCK_K)

    begin = split * tiles_per_split * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, size)
    shift_s = tl.zeros((BLOCK_M,), tl.float32)
    shift_t = tl.zeros((BLOCK_M,), tl.float32)
    total_s = tl.zeros((BLOCK_M,), tl.float32)
    total_t = tl.zeros((BLOCK_M,), tl.float32)
    cross = tl.zeros((BLOCK_M,), tl.float32)

    if BOUNDED:
        for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
            logits_s, logits_t, finite = both_logits(
                q_s, q_t, queries, rows_s, rows_t, count, memory, first, size, stride_row,
                stride_dim, ROLES, KL, OPERAND, INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M,
                BLOCK_N, BLOCK_K,
            )  # fmt: skip
            weights = tl.exp2(logits_t)
            total_s += tl.sum(tl.exp2(logits_s), axis=1)
            if ROLES == 2:
                total_t += tl.sum(weights, axis=1)
                cross += tl.sum(weights * finite, axis=1)
        rows_seen = (end - begin).to(tl.float32)
        broken = out_of_bounds(total_s, rows_seen, bound_s)
        if ROLES == 2:
            broken |= out_of_bounds(total_t, rows_seen, bound_t)
        again = tl.max((broken & (samples < batch)).to(tl.int32), axis=0) != 0
        redo_end = tl.where(again, end, begin)
        total_s = tl.where(again, 0.0, total_s)
        total_t = tl.where(again, 0.0, total_t)
        cross = tl.where(again, 0.0, cross)
        shift_s = tl.where(again, float("-inf"), shift_s)
        shift_t = tl.where(again, float("-inf"), shift_t)
    else:
        redo_end = end
        shift_s += float("-inf")
        shift_t += float("-inf")

    for first in tl.range(begin, redo_end, BLOCK_N, num_stages=1 if BOUNDED else STAGES):
        logits_s, logits_t, finite = both_logits(
            q_s, q_t, queries, rows_s, rows_t, count, memory, first, size, stride_row, stride_dim,
            ROLES, KL, OPERAND, INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        larger_s = tl.maximum(shift_s, tl.max(logits_s, axis=1))
        larger_t = tl.maximum(shift_t, tl.max(logits_t, axis=1))
        weights = tl.exp2(logits_t - larger_t[:, None])
        shrink_t = tl.exp2(shift_t - larger_t)
        total_s = total_s * tl.exp2(shift_s - larger_s)
        total_s += tl.sum(tl.exp2(logits_s - larger_s[:, None]), axis=1)
        shift_s = larger_s
        if ROLES == 2:
            total_t = total_t * shrink_t + tl.sum(weights, axis=1)
            cross = cross * shrink_t + tl.sum(weights * finite, axis=1)
            shift_t = larger_t

    store_statistics(stats, split, samples, batch, shift_s, total_s, shift_t, total_t, cross, ROLES)


@triton.jit
def both_logits(
    q_s,
    q_t,
    queries,
    rows_s,
    rows_t,
    count,
    memory,
    first,
    size,
    stride_row,
    stride_dim,
    ROLES: tl.constexpr,
    KL: tl.constexpr,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The student's and the teacher's logits of a tile, and what a teacher's weight multiplies: the
    student's logit, with KL minus the teacher's. That is 0 beyond the memory, because a weight of 0
    times -inf is NaN."""
    logits_s, _ = logits_of(
        q_s, queries, rows_s, count, memory, first, size, stride_row, stride_dim, OPERAND,
        INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
        DIM <= 128,
    )  # fmt: skip
    logits_t = logits_s
    if ROLES == 2:
        logits_t, _ = logits_of(
            q_t, queries, rows_t, count, memory, first, size, stride_row, stride_dim, OPERAND,
            INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
            DIM <= 128,
        )  # fmt: skip
    finite = logits_s
    if KL:
        finite = logits_s - logits_t
    if not EVEN:
        inside = first + tl.arange(0, BLOCK_N) < size
        finite = tl.where(inside[None, :], finite, 0.0)
    return logits_s, logits_t, finite
