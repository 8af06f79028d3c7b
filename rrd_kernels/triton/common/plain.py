"""What the kernels do not take, by the reference: float64, and rows wider than they hold.

Not by its autograd: operators run below it, and torch.func, which would not mind, refuses wherever
saved tensors have hooks, as under activation checkpointing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Elements of a matrix, of some samples, that are worked on at a time.
CHUNK = 2**24


def dtype_of(precision: str) -> torch.dtype:
    return torch.float64 if precision == "float64" else torch.float32


def in_chunks(
    some: Callable[..., tuple[Tensor, Tensor]], elements: int, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """``some`` of all samples, a few at a time; a sample has ``elements`` in its matrix."""
    chunks = (tensor.split(max(1, CHUNK // elements)) for tensor in tensors)
    first, second = zip(*map(some, *chunks), strict=True)
    return torch.cat(first), torch.cat(second)


def reduced(losses: Tensor, grad: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    if reduction == 0:
        return losses, grad
    weight = 1 / max(losses.shape[0], 1) if reduction == 1 else 1.0
    return losses.sum() * weight, grad * weight
