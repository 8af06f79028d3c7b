"""The last kernel of ``relational_partials``: merges the splits; the sums stay undivided."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import load_row, query_of, unit_row
from rrd_kernels.triton.common.kernels.splits import LOG_2, load_stats, split_factors
from rrd_kernels.triton.fifo.kernels.combine import merged_outputs


@triton.jit
def merge(
    z_s,
    z_t,
    partials,
    stats,
    sums,
    shifts,
    batch,
    splits,
    z_s_row,
    z_s_dim,
    z_t_row,
    z_t_dim,
    scale_s,
    scale_t,
    ROLES: tl.constexpr,
    KL: tl.constexpr,
    OPERAND: tl.constexpr,
    TF32: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per sample writes ``sums[i]``, [3] or with NEED_GRAD [3 + 2 DIM], and
    ``shifts[i]``, [2]; with one role, the student's, [1] or [1 + DIM], and [1]. See
    relational_partials in csrc/schemas.cpp."""
    i = tl.program_id(0)
    count = ROLES * batch
    # First load what needs no earlier result, before anything waits.
    BOTH: tl.constexpr = NEED_GRAD and ROLES == 2
    if BOTH:
        z = load_row(z_s, i, z_s_row, z_s_dim, DIM, BLOCK_D)
        if KL:
            teacher = load_row(z_t, i, z_t_row, z_t_dim, DIM, BLOCK_D)
    shifts_s, totals_s = load_stats(stats, i, count, splits, SPLITS)
    if ROLES == 2:
        shifts_t, totals_t = load_stats(stats, batch + i, count, splits, SPLITS)
    _, total_s, shift_s = split_factors(shifts_s, totals_s)
    shift_t = shift_s
    if ROLES == 2:
        factor_t, total_t, shift_t = split_factors(shifts_t, totals_t)
    SCALARS: tl.constexpr = 3 if ROLES == 2 else 1
    WIDTH: tl.constexpr = SCALARS + ROLES * DIM if NEED_GRAD else SCALARS
    row = sums + i.to(tl.int64) * WIDTH
    if NEED_GRAD:
        output_s, output_t = merged_outputs(
            partials, stats, i, batch, splits, shift_s, shift_t, ROLES, SPLIT_BLOCK, DIM_PAD,
            BLOCK_D,
        )  # fmt: skip
        d = tl.arange(0, BLOCK_D)
        tl.store(row + SCALARS + d, output_s, mask=d < DIM)
    if BOTH:
        tl.store(row + SCALARS + DIM + d, output_t, mask=d < DIM)
        unit, _ = unit_row(z)
        # The query as multiplied (rounded), because the sums are of its logits.
        query = query_of(unit, scale_s, OPERAND, TF32).to(tl.float32)
        if KL:
            unit, _ = unit_row(teacher)
            query -= query_of(unit, scale_t, OPERAND, TF32).to(tl.float32)
        cross = tl.sum(query * output_t, axis=0)
    elif ROLES == 2:
        split = tl.arange(0, SPLITS)
        stat = stats + split.to(tl.int64) * 3 * count + 2 * count + i
        cross = tl.sum(factor_t * tl.load(stat, mask=split < splits, other=0.0), axis=0)
    tl.store(row, total_s)
    if ROLES == 2:
        tl.store(row + 1, total_t)
        tl.store(row + 2, cross * LOG_2)
    tl.store(shifts + ROLES * i.to(tl.int64), shift_s)
    if ROLES == 2:
        tl.store(shifts + ROLES * i.to(tl.int64) + 1, shift_t)
