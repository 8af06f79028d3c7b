"""The last kernel: merges the splits into loss and gradient, and moves the pointer.

With O the weighted mean of rows, l the sum of weights, q the query, and logits in units of log 2:
loss_i = log 2 * (log2 l_s + shift_s - q_s . O_t) and d loss_i / d s_i = (O_s - O_t) / tau_s.

What only some losses have: the sample's own teacher row as one more column of both softmaxes
(OWN_PAIR), which is all of the teacher's softmax if its temperature is 0 (a hard target, ROLES 1);
and the teacher's entropy, log 2 * (log2 l_t + shift_t - q_t . O_t), subtracted from the loss (KL).
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import (
    load_row,
    moved_pointer,
    query_of,
    unit_row,
    write_slot,
)
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
    ROLES: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A sample's weighted rows for student and teacher, [BLOCK_D] each, summed over the splits in
    a fixed order. With one role, the student's, zeros for the teacher.

    One loop for both, with loads ahead: the kernel's time is loads that wait for one another.
    """
    output_s = tl.zeros((SPLIT_BLOCK, BLOCK_D), tl.float32)
    output_t = tl.zeros((SPLIT_BLOCK, BLOCK_D), tl.float32)
    for first in tl.range(0, splits, SPLIT_BLOCK, num_stages=3):
        output_s += weighted_parts(
            partials, stats, i, ROLES * batch, splits, first, largest_s, SPLIT_BLOCK, DIM_PAD,
            BLOCK_D,
        )  # fmt: skip
        if ROLES == 2:
            output_t += weighted_parts(
                partials, stats, batch + i, ROLES * batch, splits, first, largest_t, SPLIT_BLOCK,
                DIM_PAD, BLOCK_D,
            )  # fmt: skip
    return tl.sum(output_s, axis=0), tl.sum(output_t, axis=0)


@triton.jit
def with_own(shift, total, logit):
    """The log-sum-exp with one more column, and this column's share of the sum; NaN if ``logit``
    is, though the maximum leaves that out."""
    larger = tl.maximum(shift, logit)
    own = tl.exp2(logit - larger)
    total = total * tl.exp2(shift - larger) + own
    return tl.log2(total) + larger, own / total


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
    scale_t,
    inverse_tau_s,
    sample_weight,
    momentum,
    OPERAND: tl.constexpr,
    TF32: tl.constexpr,
    ROLES: tl.constexpr,
    OWN_PAIR: tl.constexpr,
    KL: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    REDUCE: tl.constexpr,
    ENQUEUE: tl.constexpr,
    NEWEST_FIRST: tl.constexpr,
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
    count = ROLES * batch
    TEACHER_ROW: tl.constexpr = OWN_PAIR or (KL and NEED_GRAD)
    # First load what needs no earlier result, before anything waits.
    if NEED_GRAD or OWN_PAIR:
        z = load_row(z_s, i, z_s_row, z_s_dim, DIM, BLOCK_D)
    if TEACHER_ROW:
        key = load_row(z_t, i, z_t_row, z_t_dim, DIM, BLOCK_D)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    if ENQUEUE != "never":
        first = tl.load(progress)
    shifts_s, totals_s = load_stats(stats, i, count, splits, SPLITS)
    if ROLES == 2:
        shifts_t, totals_t = load_stats(stats, batch + i, count, splits, SPLITS)
    _, total_s, shift_s = split_factors(shifts_s, totals_s)
    shift_t = shift_s
    if ROLES == 2:
        factor_t, total_t, shift_t = split_factors(shifts_t, totals_t)
    log_sum_exp = tl.log2(total_s) + shift_s
    if NEED_GRAD:
        output_s, output_t = merged_outputs(
            partials, stats, i, batch, splits, shift_s, shift_t, ROLES, SPLIT_BLOCK, DIM_PAD,
            BLOCK_D,
        )  # fmt: skip
        output_s = output_s / total_s
        if ROLES == 2:
            output_t = output_t / total_t
    elif ROLES == 2:
        split = tl.arange(0, SPLITS)
        stat = stats + split.to(tl.int64) * 3 * count + 2 * count + i
        crosses = tl.load(stat, mask=split < splits, other=0.0)
        mean_logit = tl.sum(factor_t * crosses, axis=0) / total_t
    if NEED_GRAD or OWN_PAIR:
        unit, norm = unit_row(z)
        # The query as multiplied. Computed again: partials or gradients may have overwritten it.
        query = query_of(unit, scale_s, OPERAND, TF32).to(tl.float32)
    if TEACHER_ROW:
        own, _ = unit_row(key)
        if ROLES == 2:
            query_t = query_of(own, scale_t, OPERAND, TF32).to(tl.float32)
    if KL:
        log_sum_exp_t = tl.log2(total_t) + shift_t
    if OWN_PAIR:
        b = tl.sum(query * own, axis=0)
        log_sum_exp, share = with_own(shift_s, total_s, b)
        if NEED_GRAD:
            output_s += share * (own - output_s)
        if ROLES == 2:
            a = tl.sum(query_t * own, axis=0)
            log_sum_exp_t, share = with_own(shift_t, total_t, a)
            if NEED_GRAD:
                output_t += share * (own - output_t)
            else:
                mean_logit += share * ((b - a if KL else b) - mean_logit)
        else:
            output_t = own
            mean_logit = b
    if NEED_GRAD:
        if ROLES == 2:
            mean_logit = tl.sum((query - query_t if KL else query) * output_t, axis=0)
        grad = (output_s - output_t) * inverse_tau_s
        grad = through_norm(grad, unit, norm) * sample_weight
        d = tl.arange(0, BLOCK_D)
        tl.store(grad_z_s + i.to(tl.int64) * DIM + d, grad, mask=d < DIM)
    if KL:
        log_sum_exp -= log_sum_exp_t
    tl.store(losses + i, (log_sum_exp - mean_logit) * LOG_2)

    if ENQUEUE == "after":
        if not TEACHER_ROW:
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
            tl.store(ptr, moved_pointer(first, batch, size, NEWEST_FIRST))
    if REDUCE:
        add_losses(progress, losses, loss, batch, sample_weight, BLOCK_B)
