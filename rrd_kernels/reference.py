"""The functions of :mod:`rrd_kernels.functional` in plain PyTorch: what every test trusts.

Nothing here is fast: [B, K] matrices, copies, autograd's own gradient. Inputs are taken as valid;
:mod:`rrd_kernels.functional` is where they are checked.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def relational_loss(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    *,
    tau_s: float = 0.1,
    tau_t: float = 0.02,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the student's relations to a memory against the teacher's.

    Args:
        z_s: [B, D] student embeddings, unnormalised, floating; the gradient goes here.
        z_t: [B, D] teacher embeddings, unnormalised.
        memory: [K, D] earlier teacher rows. It may change before backward: a copy is used.
        tau_s: student temperature. Default 0.1.
        tau_t: teacher temperature. Default 0.02.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or [B] for ``"none"``; float64 if an input is, else float32.

    Raises:
        RuntimeError: PyTorch's own, for what functional.relational_loss refuses clearly.

    Source: arXiv 2407.12073, equations of the relational objective.

    Example:
        >>> z_s, z_t, memory = torch.randn(4, 8), torch.randn(4, 8), torch.randn(16, 8)
        >>> relational_loss(z_s, z_t, memory).shape
        torch.Size([])
    """
    with torch.autocast(z_s.device.type, enabled=False):  # it would round the logits
        loss = _losses(z_s, z_t, memory, tau_s, tau_t)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total / max(loss.shape[0], 1) if reduction == "mean" else total


def _losses(z_s: Tensor, z_t: Tensor, memory: Tensor, tau_s: float, tau_t: float) -> Tensor:
    dtype = _compute_dtype(z_s, z_t, memory)
    rows = memory.detach().to(dtype, copy=True)
    student = F.normalize(z_s.to(dtype), dim=1)
    teacher = F.normalize(z_t.detach().to(dtype), dim=1)
    student_logits = student @ rows.T / tau_s
    teacher_logits = teacher @ rows.T / tau_t
    return -(teacher_logits.softmax(dim=1) * student_logits.log_softmax(dim=1)).sum(dim=1)


@torch.no_grad()
def enqueue_(memory: Tensor, ptr: Tensor, keys: Tensor, *, momentum: float = 0.0) -> None:
    """Writes the unit rows of ``keys`` into ``memory`` from slot ``ptr`` on, wrapping.

    Each slot becomes ``normalize(momentum * slot + (1 - momentum) * normalize(key))``; a key that
    is not finite leaves its slot alone. The pointer moves on by B in any case.

    Args:
        memory: [K, D], floating, changed in place.
        ptr: int64 [1] on the memory's device, changed in place.
        keys: [B, D], unnormalised, B <= K.
        momentum: how much of the old slot stays, in [0, 1). Default 0.

    Raises:
        RuntimeError: PyTorch's own, for what functional.enqueue_ refuses clearly.

    Source: arXiv 2407.12073 and its published code, with momentum and wrapping added.

    Example:
        >>> memory, ptr = torch.zeros(4, 2), torch.tensor([3])
        >>> enqueue_(memory, ptr, torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        >>> memory[3].tolist(), memory[0].tolist(), ptr.item()
        ([0.6000000238418579, 0.800000011920929], [0.0, 1.0], 1)
    """
    size, batch = memory.shape[0], keys.shape[0]
    slots = (ptr % size + torch.arange(batch, device=memory.device)) % size
    new = F.normalize(keys.double(), dim=1)
    if momentum:
        new = F.normalize(momentum * memory[slots].double() + (1 - momentum) * new, dim=1)
    finite = keys.isfinite().all(dim=1, keepdim=True)
    memory[slots] = torch.where(finite, new.to(memory.dtype), memory[slots])
    ptr.copy_((ptr + batch) % size)


def relational_step_(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    ptr: Tensor,
    *,
    tau_s: float = 0.1,
    tau_t: float = 0.02,
    enqueue: str = "before",
    momentum: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """:func:`enqueue_` of ``z_t``, before or after :func:`relational_loss`.

    Args:
        z_s, z_t, memory, tau_s, tau_t, reduction: as in :func:`relational_loss`.
        ptr, momentum: as in :func:`enqueue_`.
        enqueue: ``"before"`` (default) or ``"after"`` the similarities are taken.

    Returns:
        A scalar, or [B] for ``"none"``; float64 if an input is, else float32.

    Raises:
        RuntimeError: PyTorch's own, for what functional.relational_step_ refuses clearly.

    Source: arXiv 2407.12073 and its published code.

    Example:
        >>> z_s, z_t, memory = torch.randn(4, 8), torch.randn(4, 8), torch.randn(16, 8)
        >>> ptr = torch.tensor([14])
        >>> relational_step_(z_s, z_t, memory, ptr).shape, ptr
        (torch.Size([]), tensor([2]))
    """
    if enqueue == "before":
        enqueue_(memory, ptr, z_t, momentum=momentum)
    loss = relational_loss(z_s, z_t, memory, tau_s=tau_s, tau_t=tau_t, reduction=reduction)
    if enqueue == "after":
        enqueue_(memory, ptr, z_t, momentum=momentum)
    return loss
