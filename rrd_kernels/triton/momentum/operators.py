"""The operators of the momentum memory on a GPU."""

import torch
from torch import Tensor

from rrd_kernels.triton.cards import MAX_DIM, hardware_of
from rrd_kernels.triton.common.operators import on_device, settled
from rrd_kernels.triton.momentum.launches import Inputs, SampledSettings, sampled_launches
from rrd_kernels.triton.momentum.plain import plain_forward
from rrd_kernels.triton.momentum.updates import normalizer_launches, update_launch
from rrd_kernels.triton.runtime.recipe import shares_storage
from rrd_kernels.triton.runtime.run import run
from rrd_kernels.validation import METHODS


# rrd_kernels.functional has checked everything; this is for callers of the bare operators.
def _check_views(inputs: Inputs) -> None:
    z_s, memory, contrast_idx, normalizers = inputs.z_s, inputs.memory_v1, *inputs[4:]
    fits = (
        z_s.dim() == memory.dim() == contrast_idx.dim() == 2
        and z_s.shape == inputs.z_t.shape
        and memory.shape == inputs.memory_v2.shape
        and z_s.shape[1] == memory.shape[1]
        and z_s.shape[0] == contrast_idx.shape[0]
        and memory.numel() > 0
        and contrast_idx.dtype == torch.int64
        and (normalizers is None or normalizers.shape == (2,))
    )
    given = [tensor for tensor in inputs if tensor is not None]
    if not fits:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(
            f"rrd_kernels: z_s, z_t, two memories, int64 columns and normalizers do not fit; their "
            f"shapes are {shapes}"
        )
    if any(tensor.device != z_s.device for tensor in given):
        raise ValueError("rrd_kernels: embeddings, memories and columns must be on one device")


def sampled_relational_loss_forward(
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    normalizers: Tensor | None,
    tau_s: float,
    tau_t: float,
    nce_t: float,
    precision: str | None,
    reduction: int,
    method: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The operator of this name."""
    inputs = Inputs(z_s, z_t, memory_v1, memory_v2, contrast_idx, normalizers)
    _check_views(inputs)
    if method not in METHODS:
        raise ValueError(f"rrd_kernels: method must be one of {METHODS}; got {method!r}")
    if contrast_idx.shape[1] == 0:
        raise ValueError("rrd_kernels: contrast_idx names no rows")
    operand = settled(precision)
    settings = SampledSettings(tau_s, tau_t, nce_t, operand, reduction, method, need_grad)
    batch, dim = z_s.shape
    double = operand == "float64" or torch.float64 in (memory_v1.dtype, memory_v2.dtype)
    with on_device(z_s.device):
        if double or dim > MAX_DIM or batch == 0:
            return plain_forward(inputs, settings)
        buffers, launches = sampled_launches(inputs, settings, hardware_of(z_s.device))
        run(launches)
    return buffers.loss, buffers.grad_z_s


def estimate_normalizers_(
    normalizers: Tensor,
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    nce_t: float,
) -> None:
    """The operator of this name."""
    inputs = Inputs(z_s, z_t, memory_v1, memory_v2, contrast_idx, normalizers)
    _check_views(inputs)
    if contrast_idx.numel() == 0:
        return
    with on_device(z_s.device):
        run(normalizer_launches(normalizers, *inputs[:5], nce_t, hardware_of(z_s.device)))


def momentum_update_(memory: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """The operator of this name."""
    fits = rows.dim() == memory.dim() == 2 and rows.shape[1] == memory.shape[1]
    if not fits or index.shape != rows.shape[:1] or index.dtype != torch.int64:
        raise ValueError(
            f"momentum_update_: rows {tuple(rows.shape)} and int64 index {tuple(index.shape)} do "
            f"not fit a memory {tuple(memory.shape)}"
        )
    if not index.device == rows.device == memory.device:
        raise ValueError("momentum_update_: memory, index and rows must be on one device")
    if rows.shape[0] == 0:
        return
    if shares_storage(rows, memory):
        rows = rows.clone()  # rows that must not change while they are read
    with on_device(memory.device):
        run([update_launch(memory, index, rows, momentum)])
