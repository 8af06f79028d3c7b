"""The sampled loss on a GPU as a list of launches: prepare, the method's kernels, combine."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rrd_kernels.bounds import LOG2_E
from rrd_kernels.triton.cards import Config, Hardware, input_precision
from rrd_kernels.triton.common.launches import (
    STORAGE,
    cdiv,
    merge_constants,
    merge_warps,
    operand_dtype,
    prepare_launch,
    row_block,
)
from rrd_kernels.triton.momentum.plan import (
    MomentumPlan,
    dense_plan,
    gather_columns,
    gather_plan,
    is_dense,
)
from rrd_kernels.triton.runtime.launch import Kernel, Launch

#: Modules of kernels.
DENSE, GATHER, COMBINE = (f"momentum.kernels.{name}" for name in ("dense", "gather", "combine"))

#: Columns that one program of ``count_columns`` takes.
COUNTED = 1024


class MomentumInputs(NamedTuple):
    """The tensors of ``sampled_relational_loss_forward``, in its order."""

    z_s: Tensor
    z_t: Tensor
    memory_v1: Tensor
    memory_v2: Tensor
    contrast_idx: Tensor
    normalizers: Tensor | None


class MomentumSettings(NamedTuple):
    """The other arguments of ``sampled_relational_loss_forward``, in its order."""

    tau_s: float
    tau_t: float
    nce_t: float
    precision: str  # one of STORAGE, or "float64", for which there are no kernels
    reduction: int  # as at::Reduction: 0 none, 1 mean, 2 sum
    method: str  # "auto", "dense" or "gather"
    need_grad: bool


class MomentumBuffers(NamedTuple):
    """Tensors that the launches write; only ``loss`` and ``grad_z_s`` outlive them."""

    loss: Tensor  # [] or [B] float32
    grad_z_s: Tensor  # [B, D] or [0, D] float32
    losses: Tensor  # [B] float32; ``loss`` itself without a reduction
    queries: Tensor  # [2B, DIM_PAD] in the operands' dtype
    partials: Tensor  # [splits, B, DIM_PAD] float32, or [0]
    stats: Tensor  # [splits, 3, 2B] float32
    progress: Tensor  # int64 [2]; prepare and combine use the second


def _allocate(
    inputs: MomentumInputs, plan: MomentumPlan, settings: MomentumSettings
) -> MomentumBuffers:
    batch, dim = inputs.z_s.shape
    need_grad, reduce = settings.need_grad, settings.reduction != 0

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=inputs.z_s.device)

    loss = empty(*(() if reduce else (batch,)))
    return MomentumBuffers(
        loss=loss,
        grad_z_s=empty(batch if need_grad else 0, dim),
        losses=empty(batch) if reduce else loss,
        queries=empty(2 * batch, plan.dim_pad, dtype=STORAGE[settings.precision]),
        partials=empty(plan.splits, batch, plan.dim_pad) if need_grad else empty(0),
        stats=empty(plan.splits, 3, 2 * batch),
        progress=empty(2, dtype=torch.int64),
    )


def loss_launches(
    inputs: MomentumInputs, settings: MomentumSettings, hardware: Hardware
) -> tuple[MomentumBuffers, list[Launch]]:
    """The buffers of the sampled loss, and its launches in order.

    Args:
        inputs: B, P >= 1; any strides and floating dtypes.
        settings: the other arguments.
        hardware: the card.
    """
    (batch, dim), n_data = inputs.z_s.shape, inputs.memory_v1.shape[0]
    columns = inputs.contrast_idx.shape[1]
    if is_dense(settings.method, batch, columns, n_data):
        memory_bytes = max(inputs.memory_v1.element_size(), inputs.memory_v2.element_size())
        plan, config = dense_plan(batch, n_data, dim, settings.precision, memory_bytes, hardware)
        buffers = _allocate(inputs, plan, settings)
        between = _dense(inputs, buffers, plan, config, settings, hardware)
    else:
        plan = gather_plan(batch, columns, dim, hardware)
        settings = settings._replace(precision="float32")  # no other makes it faster
        buffers = _allocate(inputs, plan, settings)
        between = _gather(inputs, buffers, plan, settings)
    first = _prepare(inputs, buffers, settings)
    return buffers, [first, *between, _combine(inputs, buffers, plan, settings)]


def _prepare(
    inputs: MomentumInputs, buffers: MomentumBuffers, settings: MomentumSettings
) -> Launch:
    """The queries. Their products are logits, or with normalizers the logits' exponents."""
    tau_s, tau_t = settings.tau_s, settings.tau_t
    if inputs.normalizers is not None:
        tau_s = tau_t = settings.nce_t
    return prepare_launch(
        inputs.z_s,
        inputs.z_t,
        inputs.memory_v2,
        None,
        buffers.queries,
        buffers.progress,
        tau_s=tau_s,
        tau_t=tau_t,
        precision=settings.precision,
    )


def _shared(
    inputs: MomentumInputs, buffers: MomentumBuffers, plan: MomentumPlan, settings: MomentumSettings
) -> dict[str, Any]:
    """Arguments and constants of both methods' kernels."""
    v1, v2, contrast_idx = inputs.memory_v1, inputs.memory_v2, inputs.contrast_idx
    normalizers = inputs.normalizers
    return {
        "queries": buffers.queries,
        "partials": buffers.partials,
        "stats": buffers.stats,
        "memory_v1": v1,
        "memory_v2": v2,
        "contrast_idx": contrast_idx,
        # Without normalizers any pointer: it is not read.
        "normalizers": buffers.stats if normalizers is None else normalizers,
        "batch": inputs.z_s.shape[0],
        "n_data": v1.shape[0],
        "columns": contrast_idx.shape[1],
        "splits": plan.splits,
        "v1_row": v1.stride(0),
        "v1_dim": v1.stride(1),
        "v2_row": v2.stride(0),
        "v2_dim": v2.stride(1),
        "contrast_row": contrast_idx.stride(0),
        "contrast_dim": contrast_idx.stride(1),
        "normalizers_dim": 1 if normalizers is None else normalizers.stride(0),
        "scale_s": LOG2_E / settings.tau_s,
        "scale_t": LOG2_E / settings.tau_t,
        "EXPONENTIAL": normalizers is not None,
        "DIM": inputs.z_s.shape[1],
        "DIM_PAD": plan.dim_pad,
    }


def launch_of(
    kernel: Kernel, grid: tuple[int, ...], values: dict[str, Any], warps: int, stages: int
) -> Launch:
    """A launch with the ``values`` that the kernel takes; names in capitals are constants."""
    taken = {name: value for name, value in values.items() if name in kernel.parameters}
    arguments = {name: value for name, value in taken.items() if not name.isupper()}
    constants = {name: value for name, value in taken.items() if name.isupper()}
    return Launch(kernel, grid, arguments, constants, warps, stages)


def counted(contrast_idx: Tensor, n_data: int) -> tuple[Tensor, Launch]:
    """How often each sample's columns name each row, [B, > n_data], and the launch that counts."""
    batch, columns = contrast_idx.shape
    # One count for each row and one for missing rows, rounded up to whole vectors.
    stride, blocks = cdiv(n_data + 1, 16) * 16, cdiv(columns, COUNTED)
    counts = torch.zeros((batch, stride), dtype=torch.int32, device=contrast_idx.device)
    arguments = {
        "contrast_idx": contrast_idx,
        "counts": counts,
        "blocks": blocks,
        "columns": columns,
        "n_data": n_data,
        "contrast_row": contrast_idx.stride(0),
        "contrast_dim": contrast_idx.stride(1),
        "counts_row": stride,
    }
    kernel = Kernel(DENSE, "count_columns")
    return counts, Launch(kernel, (batch * blocks,), arguments, {"BLOCK_P": COUNTED}, 4)


def dense_constants(
    config: Config, n_data: int, precision: str, hardware: Hardware
) -> dict[str, Any]:
    """Constants of kernels that multiply all rows."""
    return {
        "OPERAND": operand_dtype(precision),
        "INPUT_PRECISION": input_precision(hardware.family, precision),
        "EVEN": n_data % config.block_n == 0,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_D": config.block_d,
        "STAGES": config.num_stages,
    }


def _dense(
    inputs: MomentumInputs,
    buffers: MomentumBuffers,
    plan: MomentumPlan,
    config: Config,
    settings: MomentumSettings,
    hardware: Hardware,
) -> list[Launch]:
    (batch, dim), n_data = inputs.z_s.shape, inputs.memory_v1.shape[0]
    counts, count = counted(inputs.contrast_idx, n_data)
    values = {
        **_shared(inputs, buffers, plan, settings),
        "counts": counts,
        "counts_row": counts.stride(0),
        "tiles_per_split": plan.per_split,
        "SPLIT_BLOCK": 2048 // config.block_m,
        **dense_constants(config, n_data, settings.precision, hardware),
    }
    blocks = cdiv(batch, config.block_m)
    warps, stages = config.num_warps, config.num_stages
    launches = [
        count,
        launch_of(
            Kernel(DENSE, "dense_statistics"),
            (blocks, plan.splits),
            values,
            warps,
            stages,
        ),
    ]
    if settings.need_grad:
        grid = blocks, plan.splits, cdiv(dim, config.block_d)
        launches.append(launch_of(Kernel(DENSE, "dense_gradient"), grid, values, warps, stages))
    return launches


def _gather(
    inputs: MomentumInputs, buffers: MomentumBuffers, plan: MomentumPlan, settings: MomentumSettings
) -> list[Launch]:
    (batch, dim), columns = inputs.z_s.shape, inputs.contrast_idx.shape[1]
    kept = (2, batch, columns) if settings.need_grad else (0,)
    values = {
        **_shared(inputs, buffers, plan, settings),
        "logits": torch.empty(kept, dtype=torch.float32, device=inputs.z_s.device),
        "columns_per_split": plan.per_split,
        "NEED_GRAD": settings.need_grad,
        "SPLIT_BLOCK": 256,
        "BLOCK_P": gather_columns(dim),
        "BLOCK_D": row_block(dim),
    }
    grid, warps = (batch, plan.splits), max(4, merge_warps(dim))
    launches = [launch_of(Kernel(GATHER, "gather_statistics"), grid, values, warps, 1)]
    if settings.need_grad:
        launches.append(launch_of(Kernel(GATHER, "gather_gradient"), grid, values, warps, 1))
    return launches


def _combine(
    inputs: MomentumInputs, buffers: MomentumBuffers, plan: MomentumPlan, settings: MomentumSettings
) -> Launch:
    z_s = inputs.z_s
    batch, dim = z_s.shape
    # The gradient's weights lack d logit / d similarity: 1 / tau_s, or with normalizers logit /
    # nce_t. The kernels multiply by the logit in units of log 2, which is log2(e) times larger.
    exponential = inputs.normalizers is not None
    values = {
        "z_s": z_s,
        "partials": buffers.partials,
        "stats": buffers.stats,
        "progress": buffers.progress,
        "losses": buffers.losses,
        "loss": buffers.loss,
        "grad_z_s": buffers.grad_z_s,
        "batch": batch,
        "splits": plan.splits,
        "z_s_row": z_s.stride(0),
        "z_s_dim": z_s.stride(1),
        "slope": 1 / (LOG2_E * settings.nce_t) if exponential else 1 / settings.tau_s,
        "sample_weight": 1 / batch if settings.reduction == 1 else 1.0,
        "DIM": dim,
        "DIM_PAD": plan.dim_pad,
        "BLOCK_D": row_block(dim),
        **merge_constants(dim, plan.splits, settings.need_grad, settings.reduction),
    }
    return launch_of(Kernel(COMBINE, "momentum_combine"), (batch,), values, merge_warps(dim), 1)
