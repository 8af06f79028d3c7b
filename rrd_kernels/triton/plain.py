"""What the kernels do not take, by the reference: float64, and rows wider than they hold.

Not by its autograd: operators run below it, and torch.func, which would not mind, refuses wherever
saved tensors have hooks, as under activation checkpointing.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.triton.fifo.launches import Settings
from rrd_kernels.triton.momentum.launches import Inputs, SampledSettings

#: Elements of a matrix, of some samples, that are worked on at a time.
CHUNK = 2**24


def plain_partials(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Sums and shifts as ``relational_partials`` has them, in float64 or float32."""
    dtype = _dtype(settings)
    some = functools.partial(
        reference.relational_partials,
        memory=memory.to(dtype),
        tau_s=settings.tau_s,
        tau_t=settings.tau_t,
        need_grad=settings.need_grad,
    )
    return _in_chunks(some, memory.shape[0], z_s.to(dtype), z_t.to(dtype))


@torch.no_grad()
def plain_forward(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Loss and gradient as ``relational_loss_forward`` has them, in float64 or float32."""
    sums, shifts = plain_partials(z_s, z_t, memory, settings)
    losses, grad = reference.losses_of_partials(
        z_s, sums, shifts, settings.tau_s, settings.need_grad
    )
    return _reduced(losses, sums.new_empty(0, z_s.shape[1]) if grad is None else grad, settings)


@torch.no_grad()
def plain_sampled_forward(inputs: Inputs, settings: SampledSettings) -> tuple[Tensor, Tensor]:
    """Loss and gradient as ``sampled_relational_loss_forward`` has them, in float64 or float32."""
    z_s, z_t, v1, v2 = (tensor.to(_dtype(settings)) for tensor in inputs[:4])
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
        losses, grad = _in_chunks(some, elements, z_s, z_t, contrast_idx)
    return _reduced(losses, grad, settings)


def _dtype(settings: Settings | SampledSettings) -> torch.dtype:
    return torch.float64 if settings.operand == "float64" else torch.float32


def _in_chunks(
    some: Callable[..., tuple[Tensor, Tensor]], elements: int, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """``some`` of all samples, a few at a time; a sample has ``elements`` in its matrix."""
    chunks = (tensor.split(max(1, CHUNK // elements)) for tensor in tensors)
    first, second = zip(*map(some, *chunks), strict=True)
    return torch.cat(first), torch.cat(second)


def _reduced(
    losses: Tensor, grad: Tensor, settings: Settings | SampledSettings
) -> tuple[Tensor, Tensor]:
    if settings.reduction == 0:
        return losses, grad
    weight = 1 / max(losses.shape[0], 1) if settings.reduction == 1 else 1.0
    return losses.sum() * weight, grad * weight
