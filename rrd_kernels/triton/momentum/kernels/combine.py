"""The last kernel of the sampled loss: merges the splits into loss and gradient."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import load_row, unit_row
from rrd_kernels.triton.common.kernels.splits import (
    LOG_2,
    add_losses,
    load_stats,
    split_factors,
    through_norm,
)


@triton.jit
def added(
    partials,
    row,
    count,
    splits,
    SPLIT_BLOCK: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Row ``row`` of ``partials`` [splits, count, DIM_PAD], summed over the splits in a fixed
    order."""
    d = tl.arange(0, BLOCK_D)
    output = tl.zeros((SPLIT_BLOCK, BLOCK_D), tl.float32)
    for first in tl.range(0, splits, SPLIT_BLOCK):
        split = (first + tl.arange(0, SPLIT_BLOCK)).to(tl.int64)
        place = (split * count + row)[:, None] * DIM_PAD + d[None, :]
        mask = (split < splits)[:, None] & (d[None, :] < DIM_PAD)
        output += tl.load(partials + place, mask=mask, other=0.0)
    return tl.sum(output, axis=0)


@triton.jit
def momentum_combine(
    z_s,
    partials,
    stats,
    progress,
    losses,
    loss,
    grad_z_s,
    batch,
    splits,
    z_s_row,
    z_s_dim,
    slope,
    sample_weight,
    NEED_GRAD: tl.constexpr,
    REDUCE: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """One program per sample writes ``losses[i]`` and ``grad_z_s[i]``, the derivative times
    ``sample_weight``.

    With REDUCE the last program adds up the losses. ``slope`` is the factor that ``partials`` lack.
    """
    i = tl.program_id(0)
    count = 2 * batch
    shifts_s, totals_s = load_stats(stats, i, count, splits, SPLITS)
    shifts_t, totals_t = load_stats(stats, batch + i, count, splits, SPLITS)
    _, total_s, shift_s = split_factors(shifts_s, totals_s)
    factor_t, total_t, _ = split_factors(shifts_t, totals_t)
    split = tl.arange(0, SPLITS)
    stat = stats + split.to(tl.int64) * 3 * count + 2 * count + i
    crosses = tl.load(stat, mask=split < splits, other=0.0)
    mean_logit = tl.sum(factor_t * crosses, axis=0) / total_t
    own_loss = (tl.log2(total_s) + shift_s - mean_logit) * LOG_2
    tl.store(losses + i, own_loss)
    if NEED_GRAD:
        d = tl.arange(0, BLOCK_D)
        grad = added(partials, i, batch, splits, SPLIT_BLOCK, DIM_PAD, BLOCK_D) * slope
        unit, norm = unit_row(load_row(z_s, i, z_s_row, z_s_dim, DIM, BLOCK_D))
        grad = through_norm(grad, unit, norm) * sample_weight
        # NaN loss, NaN gradient: if no sampled row exists, the partials hold no NaN.
        grad = tl.where(own_loss == own_loss, grad, own_loss)
        tl.store(grad_z_s + i.to(tl.int64) * DIM + d, grad, mask=d < DIM)
    if REDUCE:
        add_losses(progress, losses, loss, batch, sample_weight, BLOCK_B)
