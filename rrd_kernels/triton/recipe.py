"""Launches as integers, for ``csrc/cuda/recipe.h``, which states the same layout."""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from torch import Tensor

from rrd_kernels.triton.launch import Launch, passed
from rrd_kernels.triton.plan import cdiv
from rrd_kernels.triton.step import Buffers

#: Bytes; as PyTorch's allocator aligns.
WORKSPACE_ALIGNMENT = 512


class Source(IntEnum):
    """Where a kernel's parameter comes from; the names are those of ``recipe.h``."""

    STUDENT = 0
    TEACHER = 1
    MEMORY = 2
    POINTER = 3
    LOSS = 4
    GRADIENT = 5
    WORKSPACE = 6
    VALUE = 7


def shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _places(
    buffers: Buffers, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]
) -> tuple[dict[int, tuple[Source, int]], int]:
    """Where each tensor is found, by ``id``, and the bytes of the workspace."""
    places: dict[int, tuple[Source, int]] = {}
    if shares_storage(buffers.grad_z_s, buffers.queries):
        places[id(buffers.queries)] = (Source.GRADIENT, 0)
    offset = 0
    for name in ("queries", "partials", "stats", "losses", "state"):
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


def _bits(type_name: str, value: float) -> int:
    """The number as the kernel reads it, as the first bytes of an int64."""
    if type_name == "fp32":
        return int.from_bytes(struct.pack("<f", value), "little")
    return int(value)


def _parameters(launch: Launch, places: dict[int, tuple[Source, int]]) -> list[int]:
    """Sources and values of what is passed at run time, in the kernel's order."""
    encoded: list[int] = []
    for name, argument in passed(launch):
        value: Any = launch.arguments[name]
        if isinstance(value, Tensor):
            encoded += places[id(value)]
        else:
            encoded += (Source.VALUE, _bits(argument.type, value))
    return encoded


def recipe_of(
    launches: Sequence[Launch],
    kernels: Sequence[Any],
    buffers: Buffers,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> list[int]:
    """The launches with their compiled kernels' handles, or nothing where a kernel needs more than
    ``csrc/cuda`` gives it.

    Args:
        launches: of one step.
        kernels: Triton's CompiledKernels for them, loaded.
        buffers: what they write.
        inputs: z_s, z_t, memory and pointer, in the order of :class:`Source`.
    """
    places, workspace_bytes = _places(buffers, inputs)
    gradient = buffers.grad_z_s.untyped_storage().nbytes() // buffers.grad_z_s.element_size()
    encoded = [workspace_bytes, gradient]
    for launch, kernel in zip(launches, kernels, strict=True):
        metadata = kernel.metadata
        if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas > 1:
            return []
        parameters = _parameters(launch, places)
        encoded += (kernel.function, *launch.grid, *(1,) * (3 - len(launch.grid)))
        encoded += (launch.num_warps * metadata.warp_size, metadata.shared, len(parameters) // 2)
        encoded += parameters
    return encoded
