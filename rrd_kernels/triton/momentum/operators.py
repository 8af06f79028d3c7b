"""The operators of the momentum memory on a GPU."""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.triton.cards import MAX_DIM, hardware_of
from rrd_kernels.triton.common.operators import (
    all_reduced,
    dtype_of,
    in_batches,
    on_device,
    settled,
)
from rrd_kernels.triton.momentum.contrastive import ContrastiveSettings, contrastive_launches
from rrd_kernels.triton.momentum.launches import MomentumInputs, MomentumSettings, loss_launches
from rrd_kernels.triton.momentum.updates import normalizer_launches, update_launch
from rrd_kernels.triton.runtime.launch import shares_storage
from rrd_kernels.triton.runtime.run import run
from rrd_kernels.validation import METHODS

Settings = TypeVar("Settings", MomentumSettings, ContrastiveSettings)


# rrd_kernels.functional has checked everything; this is for callers of the bare operators.
def _check_views(inputs: MomentumInputs) -> None:
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


def _settle(inputs: MomentumInputs, settings: Settings) -> tuple[Settings, bool]:
    """Checks a loss's arguments. Returns the settings with a precision, and whether the reference
    has to compute them."""
    _check_views(inputs)
    if settings.method not in METHODS:
        raise ValueError(f"rrd_kernels: method must be one of {METHODS}; got {settings.method!r}")
    if inputs.contrast_idx.shape[1] == 0:
        raise ValueError(
            "rrd_kernels: contrast_idx must name at least one row for each sample; got P = 0"
        )
    settings = settings._replace(precision=settled(settings.precision))
    batch, dim = inputs.z_s.shape
    dtypes = inputs.memory_v1.dtype, inputs.memory_v2.dtype
    double = settings.precision == "float64" or torch.float64 in dtypes
    return settings, double or dim > MAX_DIM or batch == 0


def sampled_relational_loss_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator of this name; ``arguments`` in the order of its schema."""
    inputs, settings = MomentumInputs(*arguments[:6]), MomentumSettings(*arguments[6:])
    settings, plain = _settle(inputs, settings)
    device = inputs.z_s.device
    with on_device(device):
        if plain:
            return plain_forward(inputs, settings)
        buffers, launches = loss_launches(inputs, settings, hardware_of(device))
        run(launches)
    return buffers.loss, buffers.grad_z_s


def sampled_contrastive_loss_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator of this name; ``arguments`` in the order of its schema."""
    inputs, settings = MomentumInputs(*arguments[:6]), ContrastiveSettings(*arguments[6:])
    settings, plain = _settle(inputs, settings)
    device = inputs.z_s.device
    with on_device(device):
        if plain:
            return plain_contrastive_forward(inputs, settings)
        buffers, launches = contrastive_launches(inputs, settings, hardware_of(device))
        run(launches)
    return buffers.loss, buffers.student.grad, buffers.teacher.grad


def estimate_normalizers_(normalizers: Tensor, *arguments: Any) -> None:
    """The operator of this name; the other ``arguments`` in the order of its schema."""
    inputs = MomentumInputs(*(*arguments[:5], normalizers))
    _check_views(inputs)
    if inputs.contrast_idx.numel() == 0:
        return
    device = inputs.z_s.device
    with on_device(device):
        run(normalizer_launches(normalizers, *inputs[:5], arguments[5], hardware_of(device)))


def momentum_update_(memory: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """The operator ``momentum_update_``; see csrc/schemas.cpp."""
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
        rows = rows.clone()  # the update overwrites rows of the memory
    with on_device(memory.device):
        run([update_launch(memory, index, rows, momentum)])


@torch.no_grad()
def plain_forward(inputs: MomentumInputs, settings: MomentumSettings) -> tuple[Tensor, Tensor]:
    """The result of ``sampled_relational_loss_forward`` by the reference: float64 or float32."""
    z_s, z_t, v1, v2 = (tensor.to(dtype_of(settings.precision)) for tensor in inputs[:4])
    contrast_idx, normalizers = inputs.contrast_idx, inputs.normalizers
    tau_s, tau_t, nce_t = settings.tau_s, settings.tau_t, settings.nce_t

    def some(z_s: Tensor, z_t: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        present = (wanted >= 0) & (wanted < v1.shape[0])
        idx = wanted.where(present, 0)
        b, a = reference.sampled_logits(z_s, z_t, v1, v2, idx, normalizers, tau_s, tau_t, nce_t)
        b = b.where(present, torch.nan)
        losses = reference.cross_entropy(b, a)
        if not settings.need_grad:
            return losses, z_s[:0]
        slope = 1 / tau_s if normalizers is None else b / nce_t
        weights = (b.softmax(dim=1) - a.softmax(dim=1)) * slope
        grad = torch.einsum("bp,bpd->bd", weights, v2[idx])
        return losses, reference.through_normalize(z_s, grad)

    with torch.autocast(z_s.device.type, enabled=False):  # it would round the logits
        elements = contrast_idx.shape[1] * z_s.shape[1]
        losses, grad = in_batches(some, elements, z_s, z_t, contrast_idx)
    loss, grad = all_reduced(settings.reduction, losses, grad)
    return loss, grad


@torch.no_grad()
def plain_contrastive_forward(
    inputs: MomentumInputs, settings: ContrastiveSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of ``sampled_contrastive_loss_forward``."""
    z_s, z_t, v1, v2 = (tensor.to(dtype_of(settings.precision)) for tensor in inputs[:4])
    contrast_idx, normalizers, nce_t = inputs.contrast_idx, inputs.normalizers, settings.nce_t
    assert normalizers is not None
    needed = settings.need_grad_s, settings.need_grad_t
    _, excess = reference.contrastive_constants(contrast_idx.shape[1] - 1, v1.shape[0])

    def some(z_s: Tensor, z_t: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        present = (wanted >= 0) & (wanted < v1.shape[0])
        idx = wanted.where(present, 0)
        logits = reference.contrastive_logits(z_s, z_t, v1, v2, idx, normalizers, nce_t)
        losses, grads = z_s.new_full(z_s.shape[:1], 2 * excess), []
        for h, z, memory, need_grad in zip(logits, (z_s, z_t), (v2, v1), needed, strict=True):
            h = h.where(present, torch.nan)
            losses += F.softplus(h, threshold=40).sum(1)
            weights = h.sigmoid() / nce_t
            weights[:, 0] *= -1
            grad = torch.einsum("bp,bpd->bd", weights, memory[idx]) if need_grad else z[:0]
            grads.append(reference.through_normalize(z, grad) if need_grad else grad)
        return losses, *grads

    with torch.autocast(z_s.device.type, enabled=False):  # it would round the logits
        elements = contrast_idx.shape[1] * z_s.shape[1]
        found = in_batches(some, elements, z_s, z_t, contrast_idx)
    loss, grad_z_s, grad_z_t = all_reduced(settings.reduction, *found)
    return loss, grad_z_s, grad_z_t
