"""The last kernel: merges the splits into loss and gradient, and moves the pointer.

With O the weighted mean of rows, l the sum of weights, q the query, and logits in units of log 2:
loss_i = log 2 * (log2 l_s + shift_s - q_s . O_t) and d loss_i / d s_i = (O_s - O_t) / tau_s.
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import load_row, query_of, unit_row, write_slot
from rrd_kernels.triton.common.kernels.splits import (
    LOG_2,
    add_losses,
    load_stats,
    split_factors,
    through_norm,
)


@triton.jit
def weighted_parts(
    partials,
    stats,
    row,
    count,
    splits,
    first,
    largest,
    SPLIT_BLOCK: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A query's partials of splits ``first ...``, [SPLIT_BLOCK, BLOCK_D], at shift ``largest``."""
    d = tl.arange(0, BLOCK_D)
    split = (first + tl.arange(0, SPLIT_BLOCK)).to(tl.int64)
    inside = split < splits
    shift = tl.load(stats + split * 3 * count + row, mask=inside, other=float("-inf"))
    place = (split * count + row)[:, None] * DIM_PAD + d[None, :]
    mask = inside[:, None] & (d[None, :] < DIM_PAD)
    part = tl.load(partials + place, mask=mask, other=0.0)
    return tl.exp2(shift - largest)[:, None] * part


@triton.jit
def merged_outputs(
    partials,
    stats,
    i,
    batch,
    splits,
    largest_s,
    largest_t,
    SPLIT_BLOCK: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A sample's weighted rows for student and teacher, [BLOCK_D] each, summed over the splits in
    a fixed order.

    One loop for both, with loads ahead: the kernel's time is loads that wait for one another.
    """
    output_s = tl.zeros((SPLIT_BLOCK, BLOCK_D), tl.float32)
    output_t = tl.zeros((SPLIT_BLOCK, BLOCK_D), tl.float32)
    for first in tl.range(0, splits, SPLIT_BLOCK, num_stages=3):
        output_s += weighted_parts(
            partials, stats, i, 2 * batch, splits, first, largest_s, SPLIT_BLOCK, DIM_PAD, BLOCK_D
        )
        output_t += weighted_parts(
            partials, stats, batch + i, 2 * batch, splits, first, largest_t, SPLIT_BLOCK, DIM_PAD,
            BLOCK_D,
        )  # fmt: skip
    return tl.sum(output_s, axis=0), tl.sum(output_t, axis=0)


@triton.jit
def combine(
    z_s,
    z_t,
    memory,
    ptr,
    partials,
    stats,
    progress,
    losses,
    loss,
    grad_z_s,
    batch,
    size,
    splits,
    z_s_row,
    z_s_dim,
    z_t_row,
    z_t_dim,
    memory_row,
    memory_dim,
    scale_s,
    inverse_tau_s,
    sample_weight,
    momentum,
    OPERAND: tl.constexpr,
    TF32: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    REDUCE: tl.constexpr,
    ENQUEUE: tl.constexpr,
    MOMENTUM: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One program per sample writes ``losses[i]`` and ``grad_z_s[i]``, the derivative times
    ``sample_weight``.

    With REDUCE the last program to finish adds up the losses.
    """
    i = tl.program_id(0)
    count = 2 * batch
    # First load what needs no earlier result, before anything waits.
    if NEED_GRAD:
        z = load_row(z_s, i, z_s_row, z_s_dim, DIM, BLOCK_D)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    if ENQUEUE != "never":
        first = tl.load(progress)
    shifts_s, totals_s = load_stats(stats, i, count, splits, SPLITS)
    shifts_t, totals_t = load_stats(stats, batch + i, count, splits, SPLITS)
    _, total_s, shift_s = split_factors(shifts_s, totals_s)
    factor_t, total_t, shift_t = split_factors(shifts_t, totals_t)
    log_sum_exp = tl.log2(total_s) + shift_s
    if NEED_GRAD:
        d = tl.arange(0, BLOCK_D)
        output_s, output_t = merged_outputs(
            partials, stats, i, batch, splits, shift_s, shift_t, SPLIT_BLOCK, DIM_PAD, BLOCK_D
        )
        output_s = output_s / total_s
        output_t = output_t / total_t
        unit, norm = unit_row(z)
        # The query as multiplied. Computed again: partials or gradients may have overwritten it.
        query = query_of(unit, scale_s, OPERAND, TF32).to(tl.float32)
        mean_logit = tl.sum(query * output_t, axis=0)
        grad = (output_s - output_t) * inverse_tau_s
        grad = through_norm(grad, unit, norm) * sample_weight
        tl.store(grad_z_s + i.to(tl.int64) * DIM + d, grad, mask=d < DIM)
    else:
        split = tl.arange(0, SPLITS)
        stat = stats + split.to(tl.int64) * 3 * count + 2 * count + i
        crosses = tl.load(stat, mask=split < splits, other=0.0)
        mean_logit = tl.sum(factor_t * crosses, axis=0) / total_t
    tl.store(losses + i, (log_sum_exp - mean_logit) * LOG_2)

    if ENQUEUE == "after":
        key = load_row(z_t, i, z_t_row, z_t_dim, DIM, BLOCK_D)
        write_slot(
            memory,
            (first + i) % size,
            memory_row,
            memory_dim,
            key,
            momentum,
            MOMENTUM,
            DIM,
            BLOCK_D,
        )
    if ENQUEUE != "never":
        if i == 0:
            tl.store(ptr, (first + batch) % size)
    if REDUCE:
        add_losses(progress, losses, loss, batch, sample_weight, BLOCK_B)
