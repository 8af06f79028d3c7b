"""The contrastive loss on a GPU as a list of launches: prepare, a pass over each view, combine.

Each view has a launch of its own. Both run one compiled kernel, unless only one needs a gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rrd_kernels.bounds import LOG2_E
from rrd_kernels.reference import contrastive_constants
from rrd_kernels.triton.cards import Config, Hardware
from rrd_kernels.triton.common.launches import (
    STORAGE,
    cdiv,
    merge_constants,
    merge_warps,
    prepare_launch,
    row_block,
)
from rrd_kernels.triton.momentum.launches import (
    MomentumInputs,
    counted,
    dense_constants,
    launch_of,
)
from rrd_kernels.triton.momentum.plan import (
    CONTRASTIVE,
    MomentumPlan,
    dense_plan,
    gather_columns,
    gather_plan,
    is_dense,
)
from rrd_kernels.triton.runtime.launch import Kernel, Launch

#: The module of kernels.
KERNELS = "momentum.kernels.contrastive"


class ContrastiveSettings(NamedTuple):
    """What ``sampled_contrastive_loss_forward`` takes after its tensors, in its order."""

    nce_t: float
    precision: str  # one of STORAGE, or "float64", for which there are no kernels
    reduction: int  # as at::Reduction: 0 none, 1 mean, 2 sum
    method: str  # "auto", "dense" or "gather"
    need_grad_s: bool
    need_grad_t: bool


class View(NamedTuple):
    """An embedding, the rows that it is compared with, and what the launches write of it."""

    z: Tensor
    memory: Tensor
    normalizer: Tensor  # its first element is this view's
    queries: Tensor  # [B, DIM_PAD] in the operands' dtype
    sums: Tensor  # [splits, B] float32: the negatives' losses
    partials: Tensor  # [splits, B, DIM_PAD] float32, or [0] if no gradient is needed
    grad: Tensor  # [B, D] or [0, D] float32

    @property
    def need_grad(self) -> bool:
        return self.grad.shape[0] > 0


class ContrastiveBuffers(NamedTuple):
    """Tensors that the launches write; only ``loss`` and the views' gradients outlive them."""

    loss: Tensor  # [] or [B] float32
    losses: Tensor  # [B] float32; ``loss`` itself without a reduction
    queries: Tensor  # [2B, DIM_PAD]: both views'
    progress: Tensor  # int64 [2]; prepare and combine use the second
    student: View
    teacher: View


def _allocate(
    inputs: MomentumInputs, plan: MomentumPlan, settings: ContrastiveSettings
) -> ContrastiveBuffers:
    (batch, dim), normalizers = inputs.z_s.shape, inputs.normalizers
    assert normalizers is not None

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=inputs.z_s.device)

    queries = empty(2 * batch, plan.dim_pad, dtype=STORAGE[settings.precision])

    def view(number: int, z: Tensor, memory: Tensor, need_grad: bool) -> View:
        return View(
            z,
            memory,
            normalizers[number:],
            queries[number * batch :],
            sums=empty(plan.splits, batch),
            partials=empty(plan.splits, batch, plan.dim_pad) if need_grad else empty(0),
            grad=empty(batch if need_grad else 0, dim),
        )

    loss = empty(*(() if settings.reduction else (batch,)))
    return ContrastiveBuffers(
        loss=loss,
        losses=empty(batch) if settings.reduction else loss,
        queries=queries,
        progress=empty(2, dtype=torch.int64),
        student=view(0, inputs.z_s, inputs.memory_v2, settings.need_grad_s),
        teacher=view(1, inputs.z_t, inputs.memory_v1, settings.need_grad_t),
    )


def contrastive_launches(
    inputs: MomentumInputs, settings: ContrastiveSettings, hardware: Hardware
) -> tuple[ContrastiveBuffers, list[Launch]]:
    """The buffers of the contrastive loss, and its launches in order.

    Args:
        inputs: B, P >= 1; any strides and floating dtypes; with normalizers.
        settings: the other arguments.
        hardware: the card.
    """
    (batch, dim), n_data = inputs.z_s.shape, inputs.memory_v1.shape[0]
    negatives = inputs.contrast_idx.shape[1] - 1
    if negatives and is_dense(settings.method, batch, negatives, n_data, CONTRASTIVE):
        memory_bytes = max(inputs.memory_v1.element_size(), inputs.memory_v2.element_size())
        sizes = batch, n_data, dim, settings.precision, memory_bytes, hardware
        plan, config = dense_plan(*sizes, CONTRASTIVE)
        buffers = _allocate(inputs, plan, settings)
        passes = _dense(inputs, buffers, plan, config, settings.precision, hardware)
    else:
        plan = gather_plan(batch, max(1, negatives), dim, hardware, CONTRASTIVE)
        settings = settings._replace(precision="float32")  # no other makes it faster
        buffers = _allocate(inputs, plan, settings)
        passes = _gather(inputs, buffers, plan)
    first = prepare_launch(
        inputs.z_s,
        inputs.z_t,
        inputs.memory_v2,
        None,
        buffers.queries,
        buffers.progress,
        tau_s=settings.nce_t,
        tau_t=settings.nce_t,
        precision=settings.precision,
    )
    return buffers, [first, *passes, _combine(inputs, buffers, plan, settings)]


def _shared(inputs: MomentumInputs, plan: MomentumPlan) -> dict[str, Any]:
    """Arguments and constants of the passes, of both views."""
    (batch, dim), n_data = inputs.z_s.shape, inputs.memory_v1.shape[0]
    contrast_idx = inputs.contrast_idx
    columns = contrast_idx.shape[1]
    noise, excess = contrastive_constants(columns - 1, n_data)
    return {
        "contrast_idx": contrast_idx,
        "batch": batch,
        "n_data": n_data,
        "columns": columns,
        "splits": plan.splits,
        "contrast_row": contrast_idx.stride(0),
        "contrast_dim": contrast_idx.stride(1),
        "noise": noise,
        "excess": 2 * excess,
        "DIM": dim,
        "DIM_PAD": plan.dim_pad,
    }


def _of_view(view: View) -> dict[str, Any]:
    return {
        "queries": view.queries,
        "memory": view.memory,
        "normalizers": view.normalizer,
        "sums": view.sums,
        "partials": view.partials,
        "memory_row": view.memory.stride(0),
        "memory_dim": view.memory.stride(1),
        "NEED_GRAD": view.need_grad,
    }


def _dense(
    inputs: MomentumInputs,
    buffers: ContrastiveBuffers,
    plan: MomentumPlan,
    config: Config,
    precision: str,
    hardware: Hardware,
) -> list[Launch]:
    (batch, dim), n_data = inputs.z_s.shape, inputs.memory_v1.shape[0]
    counts, count = counted(inputs.contrast_idx[:, 1:], n_data)
    values = {
        **_shared(inputs, plan),
        "counts": counts,
        "counts_row": counts.stride(0),
        "tiles_per_split": plan.per_split,
        **dense_constants(config, n_data, precision, hardware),
    }
    kernel, blocks = Kernel(KERNELS, "dense_contrast"), cdiv(batch, config.block_m)
    launches = [count]
    for view in (buffers.student, buffers.teacher):
        grid = blocks, plan.splits, cdiv(dim, config.block_d) if view.need_grad else 1
        sizes = config.num_warps, config.num_stages
        launches.append(launch_of(kernel, grid, values | _of_view(view), *sizes))
    return launches


def _gather(
    inputs: MomentumInputs, buffers: ContrastiveBuffers, plan: MomentumPlan
) -> list[Launch]:
    batch, dim = inputs.z_s.shape
    values = {
        **_shared(inputs, plan),
        "columns_per_split": plan.per_split,
        "BLOCK_P": gather_columns(dim),
        "BLOCK_D": row_block(dim),
    }
    kernel, grid = Kernel(KERNELS, "gather_contrast"), (batch, plan.splits)
    warps = max(4, merge_warps(dim))
    return [
        launch_of(kernel, grid, values | _of_view(view), warps, 1)
        for view in (buffers.student, buffers.teacher)
    ]


def _combine(
    inputs: MomentumInputs,
    buffers: ContrastiveBuffers,
    plan: MomentumPlan,
    settings: ContrastiveSettings,
) -> Launch:
    (batch, dim), normalizers = inputs.z_s.shape, inputs.normalizers
    assert normalizers is not None
    z_s, z_t, v1, v2 = inputs[:4]
    student, teacher = buffers.student, buffers.teacher
    values = {
        **_shared(inputs, plan),
        "z_s": z_s,
        "z_t": z_t,
        "memory_v1": v1,
        "memory_v2": v2,
        "normalizers": normalizers,
        "sums_s": student.sums,
        "sums_t": teacher.sums,
        "partials_s": student.partials,
        "partials_t": teacher.partials,
        "progress": buffers.progress,
        "losses": buffers.losses,
        "loss": buffers.loss,
        "grad_z_s": student.grad,
        "grad_z_t": teacher.grad,
        "z_s_row": z_s.stride(0),
        "z_s_dim": z_s.stride(1),
        "z_t_row": z_t.stride(0),
        "z_t_dim": z_t.stride(1),
        "v1_row": v1.stride(0),
        "v1_dim": v1.stride(1),
        "v2_row": v2.stride(0),
        "v2_dim": v2.stride(1),
        "normalizers_dim": normalizers.stride(0),
        "scale": LOG2_E / settings.nce_t,
        "slope": 1 / settings.nce_t,
        "sample_weight": 1 / batch if settings.reduction == 1 else 1.0,
        "NEED_GRAD_S": student.need_grad,
        "NEED_GRAD_T": teacher.need_grad,
        "BLOCK_D": row_block(dim),
        **merge_constants(dim, plan.splits, False, settings.reduction),
    }
    kernel = Kernel(KERNELS, "contrastive_combine")
    return launch_of(kernel, (batch,), values, merge_warps(dim), 1)
