"""The contrastive loss: one pass over a view's negatives, dense or gathered, and the last kernel.

Logits h are in units of log 2. A column's loss softplus(h) and weight sigmoid(h) depend on no other
column, so that one pass gives loss and gradient. Column 0, the positive, is left to the last
kernel: its softplus(-h) would cancel in sums with the others.
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import TINY, load_row, unit_row
from rrd_kernels.triton.common.kernels.splits import LOG_2, add_losses, through_norm
from rrd_kernels.triton.common.kernels.tiles import load_queries, load_tile, logits_of
from rrd_kernels.triton.momentum.kernels.combine import added
from rrd_kernels.triton.momentum.kernels.dense import add_rows, load_counts
from rrd_kernels.triton.momentum.kernels.gather import load_index, load_query, load_rows


@triton.jit
def shift_of(normalizer, noise):
    """A view's product minus its logit: log2(Z * noise), NaN while Z is not positive."""
    z = tl.load(normalizer).to(tl.float32)
    return tl.log2(tl.where(z > 0, z * noise, float("nan")))


@triton.jit
def weight_of(h):
    """sigmoid(h), to a few roundings of any h."""
    return 1.0 / (1.0 + tl.exp2(-h))


@triton.jit
def loss_of(h):
    """softplus(h) = max(h, 0) + log(1 + w) with w = exp(-|h|), to a few roundings of any h."""
    # log(1 + w) = 2 atanh(x), x = w / (2 + w) <= 1/3: the hardware's logarithm has no relative
    # accuracy near 1. With s = w / (1 + w), x = s / (2 - s).
    weight = weight_of(h)
    s = tl.minimum(weight, 1.0 - weight)
    x = s / (2.0 - s)
    # The minimax polynomial of 2 atanh(x) / x, with a relative error of 8e-9.
    square = x * x
    series = 0.28178335 * square + 0.27960603
    series = series * square + 0.4002491
    series = series * square + 0.66666315
    series = series * square + 2.0
    return tl.maximum(h, 0.0) * LOG_2 + x * series


@triton.jit
def gather_contrast(
    queries,
    memory,
    contrast_idx,
    normalizers,
    sums,
    partials,
    batch,
    n_data,
    columns,
    memory_row,
    memory_dim,
    contrast_row,
    contrast_dim,
    columns_per_split,
    noise,
    NEED_GRAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: samples, splits of the negatives. ``sums[split, sample]`` = sum of losses;
    ``partials[split, sample]`` = sum of weight * row. Each row is read once."""
    i, split = tl.program_id(0), tl.program_id(1)
    query = load_query(queries, i, DIM_PAD, BLOCK_D)
    shift = shift_of(normalizers, noise)

    begin = 1 + split * columns_per_split
    end = tl.minimum(begin + columns_per_split, columns)
    total = tl.zeros((BLOCK_P,), tl.float32)
    output = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    for first in tl.range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        index, present = load_index(contrast_idx, i, p, columns, n_data, contrast_row, contrast_dim)
        rows = load_rows(memory, index, present, memory_row, memory_dim, DIM, BLOCK_D)
        rows = rows.to(tl.float32)
        h = tl.sum(rows * query[None, :], axis=1) - shift
        h = tl.where(present, h, float("nan"))
        h = tl.where(p < columns, h, float("-inf"))
        total += loss_of(h)
        if NEED_GRAD:
            output += weight_of(h)[:, None] * rows

    place = split.to(tl.int64) * batch + i
    tl.store(sums + place, tl.sum(total, axis=0))
    if NEED_GRAD:
        d = tl.arange(0, BLOCK_D)
        tl.store(partials + place * DIM_PAD + d, tl.sum(output, axis=0), mask=d < DIM_PAD)


@triton.jit
def dense_contrast(
    queries,
    memory,
    counts,
    normalizers,
    sums,
    partials,
    batch,
    n_data,
    memory_row,
    memory_dim,
    counts_row,
    tiles_per_split,
    noise,
    NEED_GRAD: tl.constexpr,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid: blocks of samples, splits, blocks of D, of which the first writes ``sums``. A sample
    with an index outside the memories gets NaN."""
    split = tl.program_id(1)
    at = tl.program_id(2) * BLOCK_D
    samples = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = samples < batch
    q = load_queries(queries, samples, batch, 0, DIM_PAD, BLOCK_K)
    shift = shift_of(normalizers, noise)

    begin = split * tiles_per_split * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, n_data)
    total = tl.zeros((BLOCK_M,), tl.float32)
    largest = tl.full((BLOCK_M,), TINY, tl.float32)
    output = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        h, tile = logits_of(
            q, queries, samples, batch, memory, first, n_data, memory_row, memory_dim, OPERAND,
            INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
            False,
        )  # fmt: skip
        h -= shift
        count = load_counts(counts, samples, batch, first, n_data, counts_row, EVEN, BLOCK_N)
        if NEED_GRAD:
            if DIM > BLOCK_K:
                tile = load_tile(
                    memory, first, n_data, memory_row, memory_dim, at, OPERAND, EVEN, DIM, BLOCK_N,
                    BLOCK_D,
                )  # fmt: skip
            # Before the loss: this order needs fewer registers.
            output, largest = add_rows(
                output, largest, weight_of(h) * count, tile, OPERAND, INPUT_PRECISION
            )
        total += tl.sum(loss_of(h) * count, axis=1)

    if tl.program_id(2) == 0:
        if split == 0:
            address = counts + samples.to(tl.int64) * counts_row + n_data
            missing = tl.load(address, mask=inside, other=0)
            total = tl.where(missing > 0, float("nan"), total)
        tl.store(sums + split.to(tl.int64) * batch + samples, total, mask=inside)
    if NEED_GRAD:
        if OPERAND == tl.float16:
            output *= (largest / 32768.0)[:, None]
        d = at + tl.arange(0, BLOCK_D)
        place = (split.to(tl.int64) * batch + samples)[:, None] * DIM_PAD + d[None, :]
        tl.store(partials + place, output, mask=inside[:, None] & (d[None, :] < DIM_PAD))


@triton.jit
def end_view(
    z,
    memory,
    normalizer,
    sums,
    partials,
    grad_z,
    i,
    own,
    present,
    batch,
    splits,
    z_row,
    z_dim,
    memory_row,
    memory_dim,
    scale,
    slope,
    noise,
    sample_weight,
    NEED_GRAD: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The loss of sample ``i`` in a view. Writes its gradient, times ``sample_weight``."""
    if NEED_GRAD:  # first: later it would have the rows beside it in registers
        negatives = added(partials, i, batch, splits, SPLIT_BLOCK, DIM_PAD, BLOCK_D)
    unit, norm = unit_row(load_row(z, i, z_row, z_dim, DIM, BLOCK_D))
    row = load_row(memory, own, memory_row, memory_dim, DIM, BLOCK_D)
    h = tl.sum(unit * row, axis=0) * scale - shift_of(normalizer, noise)
    h = tl.where(present, h, float("nan"))
    split = tl.arange(0, SPLITS)
    address = sums + split.to(tl.int64) * batch + i
    # softplus(-h) = softplus(h) - h, and sigmoid(-h) = 1 - sigmoid(h).
    loss = loss_of(-h) + tl.sum(tl.load(address, mask=split < splits, other=0.0), axis=0)
    if NEED_GRAD:
        d = tl.arange(0, BLOCK_D)
        grad = through_norm((negatives - weight_of(-h) * row) * slope, unit, norm) * sample_weight
        # NaN loss, NaN gradient: the partials hold no NaN for a row that does not exist.
        grad = tl.where(loss == loss, grad, loss)
        tl.store(grad_z + i.to(tl.int64) * DIM + d, grad, mask=d < DIM)
    return loss


@triton.jit
def contrastive_combine(
    z_s,
    z_t,
    memory_v1,
    memory_v2,
    contrast_idx,
    normalizers,
    sums_s,
    sums_t,
    partials_s,
    partials_t,
    progress,
    losses,
    loss,
    grad_z_s,
    grad_z_t,
    batch,
    n_data,
    splits,
    z_s_row,
    z_s_dim,
    z_t_row,
    z_t_dim,
    v1_row,
    v1_dim,
    v2_row,
    v2_dim,
    contrast_row,
    normalizers_dim,
    scale,
    slope,
    noise,
    excess,
    sample_weight,
    NEED_GRAD_S: tl.constexpr,
    NEED_GRAD_T: tl.constexpr,
    REDUCE: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """One program per sample adds its positive to the splits of both views, and writes
    ``losses[i]`` and the gradients' rows, times ``sample_weight``.

    With REDUCE the last program adds up the losses. ``slope`` is the factor that ``partials`` lack.
    """
    i = tl.program_id(0)
    index = tl.load(contrast_idx + i.to(tl.int64) * contrast_row)
    present = (index >= 0) & (index < n_data)
    own = tl.where(present, index, 0)
    loss_s = end_view(
        z_s, memory_v2, normalizers, sums_s, partials_s, grad_z_s, i, own, present, batch, splits,
        z_s_row, z_s_dim, v2_row, v2_dim, scale, slope, noise, sample_weight, NEED_GRAD_S,
        SPLITS, SPLIT_BLOCK, DIM, DIM_PAD, BLOCK_D,
    )  # fmt: skip
    loss_t = end_view(
        z_t, memory_v1, normalizers + normalizers_dim, sums_t, partials_t, grad_z_t, i, own,
        present, batch, splits, z_t_row, z_t_dim, v1_row, v1_dim, scale, slope, noise,
        sample_weight, NEED_GRAD_T, SPLITS, SPLIT_BLOCK, DIM, DIM_PAD, BLOCK_D,
    )  # fmt: skip
    tl.store(losses + i, loss_s + loss_t + excess)
    if REDUCE:
        add_losses(progress, losses, loss, batch, sample_weight, BLOCK_B)
