"""The momentum memory's loss where there are no kernels."""

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.triton.common.plain import dtype_of, in_chunks, reduced
from rrd_kernels.triton.momentum.launches import MomentumInputs, MomentumSettings


@torch.no_grad()
def plain_forward(inputs: MomentumInputs, settings: MomentumSettings) -> tuple[Tensor, Tensor]:
    """Loss and gradient as ``sampled_relational_loss_forward`` has them, in float64 or float32."""
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
        losses, grad = in_chunks(some, elements, z_s, z_t, contrast_idx)
    return reduced(losses, grad, settings.reduction)
