"""What the last kernels share: merging the sums of splits, and adding up the losses."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import NORM_EPS

LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def store_statistics(
    stats,
    split,
    samples,
    batch,
    shift_s,
    total_s,
    shift_t,
    total_t,
    cross,
    ROLES: tl.constexpr = 2,
):
    """With one role, the student's, its shifts and totals alone."""
    count = ROLES * batch
    stat = stats + split.to(tl.int64) * 3 * count + samples
    inside = samples < batch
    tl.store(stat, shift_s, mask=inside)
    if ROLES == 2:
        tl.store(stat + batch, shift_t, mask=inside)
    tl.store(stat + count, total_s, mask=inside)
    if ROLES == 2:
        tl.store(stat + count + batch, total_t, mask=inside)
        tl.store(stat + 2 * count, cross, mask=inside)


@triton.jit
def load_stats(stats, row, count, splits, SPLITS: tl.constexpr):
    """The splits' shifts and sums of weights, [SPLITS] each."""
    split = tl.arange(0, SPLITS)
    inside = split < splits
    stat = stats + split.to(tl.int64) * 3 * count + row
    shift = tl.load(stat, mask=inside, other=float("-inf"))
    total = tl.load(stat + count, mask=inside, other=0.0)
    return shift, total


@triton.jit
def split_factors(shift, total):
    """The splits' factors 2^(shift - largest) [SPLITS], the merged sum of weights, and the largest
    shift."""
    largest = tl.max(shift, axis=0)
    factor = tl.exp2(shift - largest)
    return factor, tl.sum(factor * total, axis=0), largest


@triton.jit
def through_norm(grad, unit, norm):
    """The gradient of a row, from the gradient of its unit row."""
    along = tl.sum(grad * unit, axis=0)
    # A row shorter than the norm's clamp is divided by a constant: no projection there.
    along = tl.where(norm > NORM_EPS, along, 0.0)
    return (grad - along * unit) / norm


@triton.jit
def add_losses(progress, losses, loss, batch, sample_weight, BLOCK_B: tl.constexpr):
    """The last program to arrive writes ``loss`` = sample_weight * sum(losses). The order of the
    sum is the same, whichever program it is."""
    # Every thread has stored its loss before one of them counts this program as done.
    tl.debug_barrier()
    done = tl.atomic_add(progress + 1, 1, sem="acq_rel")
    if done == batch - 1:
        total = tl.zeros((BLOCK_B,), tl.float32)
        for first_loss in tl.range(0, batch, BLOCK_B):
            b = first_loss + tl.arange(0, BLOCK_B)
            # Skip the L1 cache: other multiprocessors wrote the losses.
            total += tl.load(losses + b, mask=b < batch, other=0.0, cache_modifier=".cg")
        tl.store(loss, tl.sum(total, axis=0) * sample_weight)
