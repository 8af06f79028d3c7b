"""The sampled loss that the kernels do not take, in plain PyTorch: float64, and wider rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels.triton.plain import CHUNK
from rrd_kernels.triton.sampled_step import Inputs, SampledSettings


@torch.no_grad()
def plain_sampled_forward(inputs: Inputs, settings: SampledSettings) -> tuple[Tensor, Tensor]:
    """Loss and gradient as ``sampled_relational_loss_forward`` has them, in float64 or float32."""
    dtype = torch.float64 if settings.operand == "float64" else torch.float32
    z_s, z_t = inputs.z_s, inputs.z_t
    batch, dim = z_s.shape
    with torch.autocast(z_s.device.type, enabled=False):  # it would round the logits
        losses = z_s.new_empty(batch, dtype=dtype)
        grad_z_s = z_s.new_empty((batch if settings.need_grad else 0, dim), dtype=dtype)
        views = inputs.memory_v1.to(dtype), inputs.memory_v2.to(dtype)
        step = max(1, CHUNK // views[0].shape[0])
        for at in range(0, batch, step):
            part = slice(at, at + step)
            chunk = inputs._replace(
                z_s=z_s[part].to(dtype),
                z_t=z_t[part].to(dtype),
                memory_v1=views[0],
                memory_v2=views[1],
                contrast_idx=inputs.contrast_idx[part],
            )
            losses[part], grad = _chunk(chunk, settings)
            if settings.need_grad:
                grad_z_s[part] = grad
        if settings.reduction == 0:
            return losses, grad_z_s
        weight = 1 / max(batch, 1) if settings.reduction == 1 else 1.0
        return losses.sum() * weight, grad_z_s.mul_(weight)


def _counts(contrast_idx: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """How often each sample wants each row; NaN throughout where one is not there."""
    missing = (contrast_idx < 0) | (contrast_idx >= size)
    place = torch.where(missing, size, contrast_idx)
    counts = torch.zeros((place.shape[0], size + 1), dtype=dtype, device=place.device)
    counts.scatter_add_(1, place, torch.ones_like(place, dtype=dtype))
    return torch.where(counts[:, size:] > 0, torch.nan, counts[:, :size])


def _chunk(inputs: Inputs, settings: SampledSettings) -> tuple[Tensor, Tensor]:
    student = F.normalize(inputs.z_s, dim=1)
    b = student @ inputs.memory_v2.T
    a = F.normalize(inputs.z_t, dim=1) @ inputs.memory_v1.T
    slope: Tensor | float = 1 / settings.tau_s
    if inputs.normalizers is not None:
        z = torch.where(inputs.normalizers > 0, inputs.normalizers, torch.nan).to(b.dtype)
        b, a = torch.exp(b / settings.nce_t) / z[0], torch.exp(a / settings.nce_t) / z[1]
        slope = b / (settings.tau_s * settings.nce_t)
    b, a = b / settings.tau_s, a / settings.tau_t
    counts = _counts(inputs.contrast_idx, b.shape[1], b.dtype)
    log_sum_exp, q = _softmax(b, counts)
    _, p = _softmax(a, counts)
    losses = log_sum_exp - (p * b).where(counts != 0, 0.0).sum(dim=1)
    weights = ((q - p) * slope).where(counts != 0, 0.0)
    grad = weights @ inputs.memory_v2
    norm = torch.linalg.vector_norm(inputs.z_s, dim=1, keepdim=True)
    along = (grad * student).sum(dim=1, keepdim=True) * student
    grad = (grad - along.where(norm > 1e-12, 0.0)) / norm.clamp_min(1e-12)
    return losses, grad


def _softmax(logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and softmax over columns that count as often as ``counts`` says."""
    largest = logits.where(counts != 0, -torch.inf).amax(dim=1, keepdim=True)
    weights = (counts * torch.exp(logits - largest)).where(counts != 0, 0.0)
    total = weights.sum(dim=1, keepdim=True)
    return (total.log() + largest).squeeze(1), weights / total
