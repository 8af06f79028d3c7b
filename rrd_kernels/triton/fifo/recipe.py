"""Recipes: a FIFO step as integers, which csrc/cuda launches on any tensors without Python."""

from collections.abc import Sequence

from torch import Tensor

from rrd_kernels.triton.common.launches import cdiv
from rrd_kernels.triton.fifo.launches import FifoBuffers
from rrd_kernels.triton.runtime.launch import (
    Launch,
    Loaded,
    Place,
    Source,
    encode_launch,
    shares_storage,
)

#: Bytes; the alignment of PyTorch's allocator.
WORKSPACE_ALIGNMENT = 512


def _places(
    buffers: FifoBuffers, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]
) -> tuple[dict[int, Place], int]:
    """The place of each tensor, by its ``id``, and the size of the workspace in bytes."""
    places: dict[int, Place] = {}
    if shares_storage(buffers.grad_z_s, buffers.queries):
        places[id(buffers.queries)] = (Source.GRADIENT, 0)
    offset = 0
    for name in ("queries", "partials", "stats", "losses", "progress"):
        tensor = getattr(buffers, name)
        if id(tensor) not in places:
            places[id(tensor)] = (Source.WORKSPACE, offset)
            offset += cdiv(tensor.nbytes, WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
    places[id(buffers.loss)] = (Source.LOSS, 0)
    places[id(buffers.grad_z_s)] = (Source.GRADIENT, 0)
    for source, tensor in zip(Source, inputs, strict=False):
        if tensor is not None:
            places[id(tensor)] = (source, 0)
    return places, offset


def recipe_of(
    launches: Sequence[Launch],
    loaded: Sequence[Loaded],
    buffers: FifoBuffers,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> list[int]:
    """The launches of one step, with places instead of the tensors' addresses.

    Args:
        launches: those of the step.
        loaded: their kernels.
        buffers: the tensors that they write.
        inputs: z_s, z_t, memory and ptr, in the order of :class:`Source`.
    """
    places, workspace_bytes = _places(buffers, inputs)
    gradient = buffers.grad_z_s.untyped_storage().nbytes() // buffers.grad_z_s.element_size()
    encoded = [workspace_bytes, gradient]
    for launch, kernel in zip(launches, loaded, strict=True):
        encoded += encode_launch(launch, kernel, lambda tensor: places[id(tensor)])
    return encoded
