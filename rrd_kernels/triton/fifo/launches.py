"""A step on a GPU as a list of launches: prepare, attend, combine."""

from typing import NamedTuple

import torch
from torch import Tensor

from rrd_kernels.bounds import LOG2_E, SLACK, fits_float32
from rrd_kernels.triton.cards import FAMILIES, Hardware, input_precision
from rrd_kernels.triton.common.launches import (
    STORAGE,
    embeddings_of,
    merge_constants,
    merge_warps,
    operand_dtype,
    prepare_launch,
    row_block,
    row_constants,
    row_warps,
)
from rrd_kernels.triton.fifo.plan import FifoPlan, make_plan
from rrd_kernels.triton.runtime.launch import Kernel, Launch


class FifoSettings(NamedTuple):
    """The arguments of a step besides its tensors."""

    tau_s: float
    tau_t: float  # 0: a hard target, which has no teacher's queries
    unit_memory: bool
    own_pair: bool
    kl: bool
    precision: str  # one of STORAGE
    reduction: int  # as at::Reduction: 0 none, 1 mean, 2 sum
    need_grad: bool
    enqueue: str = "never"  # or "before", "after"
    newest_first: bool = False
    momentum: float = 0.0

    @property
    def taus(self) -> tuple[float, ...]:
        """Of the queries: the student's, then the teacher's."""
        return (self.tau_s, self.tau_t) if self.tau_t else (self.tau_s,)

    @property
    def roles(self) -> int:
        """Queries of a sample."""
        return len(self.taus)

    @property
    def entropy(self) -> bool:
        """Whether the teacher's entropy is subtracted; a hard target has none."""
        return self.kl and self.roles == 2

    @property
    def divergence(self) -> str:
        """As in :mod:`rrd_kernels.reference`."""
        return "kl" if self.kl else "cross_entropy"

    @property
    def scale_t(self) -> float | None:
        """The factor of the teacher's queries."""
        return LOG2_E / self.tau_t if self.tau_t else None


class FifoBuffers(NamedTuple):
    """Tensors that a step writes besides the memory; only ``loss`` and ``grad_z_s`` outlive it."""

    loss: Tensor  # [] or [B] float32
    grad_z_s: Tensor  # [B, D] or [0, D] float32; may share the storage of ``queries``
    losses: Tensor  # [B] float32; ``loss`` itself without a reduction
    queries: Tensor  # [2B, DIM_PAD] in the operands' dtype; of a hard target [B, DIM_PAD]
    partials: Tensor  # [splits, 2B, DIM_PAD] float32, or [0]; may be ``queries``
    stats: Tensor  # [splits, 3, 2B] float32
    progress: Tensor  # int64 [2]


def allocate(z_s: Tensor, plan: FifoPlan, settings: FifoSettings) -> FifoBuffers:
    batch, dim = z_s.shape
    need_grad, reduce = settings.need_grad, settings.reduction != 0
    count = settings.roles * batch

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=z_s.device)

    queries = empty(count, plan.dim_pad, dtype=STORAGE[settings.precision])
    grad_z_s = empty(0, dim)
    if not need_grad:
        partials = empty(0)
    elif plan.splits > 1 or queries.dtype != torch.float32:
        partials = empty(plan.splits, count, plan.dim_pad)
        grad_z_s = empty(batch, dim)
    elif plan.dim_blocks == 1:
        partials = queries  # one program reads a block of queries, then writes its sums there
        grad_z_s = empty(batch, dim)
    else:
        partials = empty(1, count, plan.dim_pad)
        grad_z_s = queries.view(-1)[: batch * dim].view(batch, dim)  # combine reads no queries
    loss = empty(*(() if reduce else (batch,)))
    return FifoBuffers(
        loss=loss,
        grad_z_s=grad_z_s,
        losses=empty(batch) if reduce else loss,
        queries=queries,
        partials=partials,
        stats=empty(plan.splits, 3, count),
        progress=empty(2, dtype=torch.int64),
    )


def enqueue_launches(
    memory: Tensor, ptr: Tensor, keys: Tensor, newest_first: bool, momentum: float
) -> tuple[Launch, Launch]:
    """The launches of an enqueue outside a step: the slots, then the pointer."""
    (size, dim), batch = memory.shape, keys.shape[0]
    double = torch.float64 in (memory.dtype, keys.dtype)
    write = Launch(
        Kernel("fifo.kernels.enqueue", "enqueue"),
        (batch,),
        {
            "memory": memory,
            "ptr": ptr,
            "keys": keys,
            "size": size,
            "keys_row": keys.stride(0),
            "keys_dim": keys.stride(1),
            "memory_row": memory.stride(0),
            "memory_dim": memory.stride(1),
            "momentum": momentum,
        },
        {
            "DTYPE": "float64" if double else "float32",
            "NEWEST_FIRST": newest_first,
            "MOMENTUM": momentum != 0,
            "DIM": dim,
            "BLOCK_D": row_block(dim),
        },
        row_warps(dim),
    )
    move = Launch(
        Kernel("fifo.kernels.enqueue", "advance"),
        (1,),
        {"ptr": ptr, "batch": batch, "size": size},
        {"NEWEST_FIRST": newest_first},
        1,
    )
    return write, move


def step_launches(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    ptr: Tensor | None,
    settings: FifoSettings,
    hardware: Hardware,
    plan: FifoPlan | None = None,
) -> tuple[FifoBuffers, tuple[Launch, Launch, Launch]]:
    """The buffers of a step, and its launches in order.

    Args:
        z_s, z_t: [B, D], B >= 1, any strides and floating dtype.
        memory: [K, D], any strides; written unless ``settings.enqueue`` is "never".
        ptr: int64 [1]; ``None`` without an enqueue.
        settings: the other arguments.
        hardware: the card.
        plan: default: that of :func:`make_plan`.
    """
    (batch, dim), size = z_s.shape, memory.shape[0]
    if plan is None:
        plan = make_plan(
            batch,
            size,
            dim,
            settings.precision,
            memory.element_size(),
            settings.need_grad,
            hardware,
            roles=settings.roles,
        )
    buffers = allocate(z_s, plan, settings)
    launches = (
        prepare_launch(
            z_s,
            z_t,
            memory,
            ptr,
            buffers.queries,
            buffers.progress,
            tau_s=settings.tau_s,
            tau_t=settings.tau_t,
            precision=settings.precision,
            enqueue=settings.enqueue,
            newest_first=settings.newest_first,
            momentum=settings.momentum,
            dependent=plan.dependent,
        ),
        attend_launch(memory, buffers, plan, settings, hardware),
        _combine(z_s, z_t, memory, ptr, buffers, plan, settings),
    )
    return buffers, launches


def attend_launch(
    memory: Tensor, buffers: FifoBuffers, plan: FifoPlan, settings: FifoSettings, hardware: Hardware
) -> Launch:
    """The second kernel: the pass over the memory, in splits."""
    size, dim = memory.shape
    config = plan.config
    bounds = [SLACK * LOG2_E / tau for tau in settings.taus]
    arguments = {
        "queries": buffers.queries,
        "memory": memory,
        "partials": buffers.partials,
        "stats": buffers.stats,
        "batch": buffers.losses.shape[0],
        "size": size,
        "stride_row": memory.stride(0),
        "stride_dim": memory.stride(1),
        "tiles_per_split": plan.tiles_per_split,
        "bound_s": bounds[0],
        "bound_t": bounds[1] if settings.roles == 2 else None,
    }
    bounded = settings.unit_memory and all(fits_float32(tau, size) for tau in settings.taus)
    constants = {
        "ROLES": settings.roles,
        "OPERAND": operand_dtype(settings.precision),
        "INPUT_PRECISION": input_precision(hardware.family, settings.precision),
        # Unshifted weights exceed float16's range, 2^16. The loss alone keeps them in float32.
        "BOUNDED": bounded and not (settings.need_grad and settings.precision == "float16"),
        "EVEN": plan.even,
        "DIM": dim,
        "DIM_PAD": plan.dim_pad,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "STAGES": config.num_stages,
        "DEPENDENT": plan.dependent,
    }
    if settings.need_grad:
        kernel, constants["BLOCK_D"] = Kernel("fifo.kernels.attention", "attend"), config.block_d
        constants["NVIDIA"] = hardware.family.startswith("sm_")
        family = FAMILIES[hardware.family]
        whole_rows = config.block_k == config.block_d == 128
        reorders = settings.precision == "tf32" and family.reorders_tf32 and whole_rows
        constants["REORDER_WARPS"] = config.num_warps if reorders else 0
        sums = 1 if settings.precision == "float32" else family.sums_per_query
        constants["SUMS_PER_QUERY"] = min(config.block_n, sums)
    else:
        kernel, constants["KL"] = Kernel("fifo.kernels.loss_only", "attend_loss"), settings.entropy
        del arguments["partials"]
    return Launch(
        kernel,
        plan.grid,
        arguments,
        constants,
        config.num_warps,
        config.num_stages,
        plan.dependent,
    )


def _combine(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    ptr: Tensor | None,
    buffers: FifoBuffers,
    plan: FifoPlan,
    settings: FifoSettings,
) -> Launch:
    batch, dim = z_s.shape
    teacher = settings.own_pair or (settings.entropy and settings.need_grad)
    return Launch(
        Kernel("fifo.kernels.combine", "combine"),
        (batch,),
        {
            "z_s": z_s,
            "z_t": z_t,
            "memory": memory,
            "ptr": buffers.progress if ptr is None else ptr,
            "partials": buffers.partials,
            "stats": buffers.stats,
            "progress": buffers.progress,
            "losses": buffers.losses,
            "loss": buffers.loss,
            "grad_z_s": buffers.grad_z_s,
            **embeddings_of(z_s, z_t, memory),
            "splits": plan.splits,
            "scale_s": LOG2_E / settings.tau_s,
            "scale_t": settings.scale_t if teacher else None,
            "inverse_tau_s": 1 / settings.tau_s,
            "sample_weight": 1 / batch if settings.reduction == 1 else 1.0,
            "momentum": settings.momentum,
        },
        {
            **row_constants(
                dim,
                plan.dim_pad,
                settings.precision,
                settings.enqueue,
                settings.newest_first,
                settings.momentum,
            ),
            "OPERAND": operand_dtype(settings.precision),
            "ROLES": settings.roles,
            "OWN_PAIR": settings.own_pair,
            "KL": settings.entropy,
            **merge_constants(dim, plan.splits, settings.need_grad, settings.reduction),
            "DEPENDENT": plan.dependent,
        },
        merge_warps(dim),
        dependent=plan.dependent,
    )
