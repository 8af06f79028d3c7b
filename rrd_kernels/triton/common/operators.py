"""What the operators of both memories share.

The reference computes float64 and rows wider than the kernels hold, some samples at a time, without
autograd: operators run below it, and torch.func fails under activation checkpointing, whose saved
tensors have hooks.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

#: The largest matrix that is made at a time, in elements.
BATCH_ELEMENTS = 2**24


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes ``device`` the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def settled(precision: str | None) -> str:
    """``precision``; if None, PyTorch's setting. As in csrc/cuda/relational_loss.cpp."""
    if precision is not None:
        return precision
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"


def dtype_of(precision: str) -> torch.dtype:
    return torch.float64 if precision == "float64" else torch.float32


def in_batches(
    some: Callable[..., tuple[Tensor, ...]], elements: int, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """``some`` of all samples, in batches; a sample's matrix has ``elements`` elements."""
    batches = (tensor.split(max(1, BATCH_ELEMENTS // elements)) for tensor in tensors)
    return tuple(map(torch.cat, zip(*map(some, *batches), strict=True)))


def all_reduced(reduction: int, losses: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
    """Losses [B] and their gradients [B, D], reduced; ``reduction`` is an at::Reduction."""
    if reduction == 0:
        return losses, *grads
    sample_weight = 1 / max(losses.shape[0], 1) if reduction == 1 else 1.0
    return losses.sum() * sample_weight, *(grad * sample_weight for grad in grads)
