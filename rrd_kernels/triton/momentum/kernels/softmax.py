"""What the kernels of the sampled loss share: logits from products, statistics, weights.

Logits are in units of log 2: b the student's and a the teacher's. Statistics have the layout of
``store_statistics`` in common/kernels/splits.py.
"""

import triton
import triton.language as tl


@triton.jit
def gain_of(normalizers, view, normalizers_dim, scale, EXPONENTIAL: tl.constexpr):
    """The factor from exponential to logit, ``scale`` / Z; NaN while Z is not positive."""
    gain = scale
    if EXPONENTIAL:
        z = tl.load(normalizers + view * normalizers_dim).to(tl.float32)
        gain = tl.where(z > 0, scale / z, float("nan"))
    return gain


@triton.jit
def logit_of(product, gain, EXPONENTIAL: tl.constexpr):
    """The logit of a query's product with a row: the product itself, or if EXPONENTIAL
    2^product * gain."""
    if EXPONENTIAL:
        product = tl.exp2(product) * gain
    return product


@triton.jit
def count_in(shift, total, logits, count):
    """Adds [M, N] columns, each ``count`` times, to shift and total. Returns these, the columns'
    weights, and the factor of the earlier columns' weights."""
    larger = tl.maximum(shift, tl.max(logits, axis=1))
    # 0 while nothing is counted yet, because -inf - -inf is NaN.
    base = tl.where(larger == float("-inf"), 0.0, larger)
    shrink = tl.exp2(shift - base)
    weights = count * tl.exp2(logits - base[:, None])
    return larger, total * shrink + tl.sum(weights, axis=1), weights, shrink


@triton.jit
def accumulate(shift_s, total_s, shift_t, total_t, cross, b, a, count):
    """Adds [M, N] columns to the statistics of [M] samples.

    A column with ``count`` 0 may have any logit, NaN too.
    """
    counted = count > 0
    beyond = float("-inf")
    shift_s, total_s, _, _ = count_in(shift_s, total_s, tl.where(counted, b, beyond), count)
    shift_t, total_t, weights, shrink = count_in(
        shift_t, total_t, tl.where(counted, a, beyond), count
    )
    cross = cross * shrink + tl.sum(weights * tl.where(counted, b, 0.0), axis=1)
    return shift_s, total_s, shift_t, total_t, cross


@triton.jit
def merged_statistics(
    stats, rows, inside, batch, splits, SPLIT_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr
):
    """The largest logit and the sum of weights [BLOCK_M] over all splits."""
    shift = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first in tl.range(0, splits, SPLIT_BLOCK):
        split = first + tl.arange(0, SPLIT_BLOCK)
        mask = (split[:, None] < splits) & inside[None, :]
        stat = stats + split.to(tl.int64)[:, None] * 6 * batch + rows[None, :]
        shifts = tl.load(stat, mask=mask, other=float("-inf"))
        totals = tl.load(stat + 2 * batch, mask=mask, other=0.0)
        larger = tl.maximum(shift, tl.max(shifts, axis=0))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        total *= tl.exp2(shift - base)
        total += tl.sum(totals * tl.exp2(shifts - base[None, :]), axis=0)
        shift = larger
    return shift, total


@triton.jit
def softmaxes_of(stats, samples, batch, splits, SPLIT_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr):
    """Each sample's largest logit and reciprocal sum of weights, student's and teacher's."""
    inside = samples < batch
    shift_s, total_s = merged_statistics(
        stats, samples, inside, batch, splits, SPLIT_BLOCK, BLOCK_M
    )
    shift_t, total_t = merged_statistics(
        stats, batch + samples, inside, batch, splits, SPLIT_BLOCK, BLOCK_M
    )
    return shift_s, 1.0 / total_s, shift_t, 1.0 / total_t


@triton.jit
def weights_of(b, a, count, shift_s, share_s, shift_t, share_t, EXPONENTIAL: tl.constexpr):
    """The weight [M, N] of each row in the gradient, up to a constant factor: (q - p) db/dx.

    Subtracts before it sums: under EXPONENTIAL q and p are nearly equal, so two sums would cancel.
    """
    weights = tl.exp2(b - shift_s[:, None]) * share_s[:, None]
    weights -= tl.exp2(a - shift_t[:, None]) * share_t[:, None]
    if EXPONENTIAL:
        weights *= b
    return tl.where(count > 0, weights * count, 0.0)
