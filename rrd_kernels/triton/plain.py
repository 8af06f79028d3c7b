"""What the kernels do not take, in plain PyTorch: float64, and rows wider than they hold."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels.triton.step import Settings

#: Elements of a [rows, K] matrix that is worked on at a time.
CHUNK = 2**24


@torch.no_grad()
def plain_forward(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Loss and gradient as ``relational_loss_forward`` has them, in float64 or float32."""
    dtype = torch.float64 if settings.operand == "float64" else torch.float32
    batch, dim = z_s.shape
    with torch.autocast(z_s.device.type, enabled=False):  # it would round the logits
        losses = z_s.new_empty(batch, dtype=dtype)
        grad_z_s = z_s.new_empty((batch if settings.need_grad else 0, dim), dtype=dtype)
        rows = memory.to(dtype)
        step = max(1, CHUNK // memory.shape[0])
        for at in range(0, batch, step):
            part = slice(at, at + step)
            losses[part], grad = _chunk(z_s[part].to(dtype), z_t[part].to(dtype), rows, settings)
            if settings.need_grad:
                grad_z_s[part] = grad
        if settings.reduction == 0:
            return losses, grad_z_s
        weight = 1 / max(batch, 1) if settings.reduction == 1 else 1.0
        return losses.sum() * weight, grad_z_s.mul_(weight)


def _chunk(z_s: Tensor, z_t: Tensor, rows: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(z_s, dim=1, keepdim=True)
    student = F.normalize(z_s, dim=1)
    logits = student @ rows.T / settings.tau_s
    weights = (F.normalize(z_t, dim=1) @ rows.T / settings.tau_t).softmax(dim=1)
    losses = logits.logsumexp(dim=1) - (weights * logits).sum(dim=1)
    grad = (logits.softmax(dim=1) - weights) @ rows / settings.tau_s
    along = (grad * student).sum(dim=1, keepdim=True) * student
    grad = (grad - along.where(norm > 1e-12, 0.0)) / norm.clamp_min(1e-12)
    return losses, grad
