"""relational_partials on a GPU: prepare, attend, merge."""

import torch
from torch import Tensor

from rrd_kernels.bounds import LOG2_E
from rrd_kernels.triton.cards import Hardware
from rrd_kernels.triton.common.launches import (
    merge_constants,
    merge_warps,
    operand_dtype,
    prepare_launch,
    row_block,
)
from rrd_kernels.triton.fifo.launches import FifoSettings, allocate, attend_launch
from rrd_kernels.triton.fifo.plan import make_plan
from rrd_kernels.triton.runtime.launch import Kernel, Launch


def partials_launches(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: FifoSettings, hardware: Hardware
) -> tuple[tuple[Tensor, Tensor], tuple[Launch, Launch, Launch]]:
    """The outputs (sums, shifts), and the launches that write them, in order.

    Args:
        z_s, z_t: [B, D], B >= 1, any strides and floating dtype.
        memory: [K, D], any strides.
        settings: without reduction and enqueue.
        hardware: the card.
    """
    (batch, dim), size = z_s.shape, memory.shape[0]
    need_grad, precision = settings.need_grad, settings.precision
    roles = settings.roles
    plan = make_plan(
        batch, size, dim, precision, memory.element_size(), need_grad, hardware, roles=roles
    )
    buffers = allocate(z_s, plan, settings)
    width = (3 if roles == 2 else 1) + (roles * dim if need_grad else 0)
    sums = z_s.new_empty((batch, width), dtype=torch.float32)
    shifts = z_s.new_empty((batch, roles), dtype=torch.float32)
    teacher = settings.entropy and need_grad  # whether its query is used
    constants = merge_constants(dim, plan.splits, need_grad, settings.reduction)
    last = Launch(
        Kernel("fifo.kernels.merge", "merge"),
        (batch,),
        {
            "z_s": z_s,
            "z_t": z_t if teacher else None,
            "partials": buffers.partials,
            "stats": buffers.stats,
            "sums": sums,
            "shifts": shifts,
            "batch": batch,
            "splits": plan.splits,
            "z_s_row": z_s.stride(0),
            "z_s_dim": z_s.stride(1),
            "z_t_row": z_t.stride(0) if teacher else None,
            "z_t_dim": z_t.stride(1) if teacher else None,
            "scale_s": LOG2_E / settings.tau_s,
            "scale_t": settings.scale_t if teacher else None,
        },
        {
            "OPERAND": operand_dtype(precision),
            "TF32": precision == "tf32",
            "ROLES": roles,
            "KL": settings.entropy,
            "NEED_GRAD": need_grad,
            "SPLITS": constants["SPLITS"],
            "SPLIT_BLOCK": constants["SPLIT_BLOCK"],
            "DIM": dim,
            "DIM_PAD": plan.dim_pad,
            "BLOCK_D": row_block(dim),
        },
        merge_warps(dim),
    )
    first = prepare_launch(
        z_s,
        z_t,
        memory,
        None,
        buffers.queries,
        buffers.progress,
        tau_s=settings.tau_s,
        tau_t=settings.tau_t,
        precision=precision,
    )
    middle = attend_launch(memory, buffers, plan, settings, hardware)
    return (sums, shifts), (first, middle, last)
