"""Launches as integers, for ``csrc/cuda/recipe.h``, which states the same layout."""

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from torch import Tensor

from rrd_kernels.triton.fifo.launches import Buffers
from rrd_kernels.triton.fifo.plan import cdiv
from rrd_kernels.triton.runtime.launch import Launch, Loaded

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


Place = tuple[Source, int]


def shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _places(
    buffers: Buffers, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]
) -> tuple[dict[int, Place], int]:
    """Where each tensor is found, by ``id``, and the bytes of the workspace."""
    places: dict[int, Place] = {}
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


def _bits(type_name: str, value: Any) -> int:
    """The number as the kernel reads it, as the first bytes of an int64."""
    if isinstance(value, float):
        packed = struct.pack("<d" if type_name == "fp64" else "<f", value)
        return int.from_bytes(packed, "little", signed=True)
    return int(value)


def _encode(launch: Launch, loaded: Loaded, place_of: Callable[[Tensor], Place]) -> list[int]:
    parameters: list[int] = []
    for name, type_name in loaded.passed:
        value = launch.arguments[name]
        if isinstance(value, Tensor):
            parameters += place_of(value)
        else:
            parameters += (Source.VALUE, _bits(type_name, value))
    grid = launch.grid + (1,) * (3 - len(launch.grid))
    settings = loaded.threads, loaded.shared_bytes, int(launch.dependent)
    return [loaded.function, *grid, *settings, len(loaded.passed), *parameters]


def encode(launches: Sequence[Launch], loaded: Sequence[Loaded]) -> list[int]:
    """The launches on the tensors that they name, which must live until they have been launched."""
    encoded = [0, 0]
    for launch, kernel in zip(launches, loaded, strict=True):
        encoded += _encode(launch, kernel, lambda tensor: (Source.VALUE, tensor.data_ptr()))
    return encoded


def recipe_of(
    launches: Sequence[Launch],
    loaded: Sequence[Loaded],
    buffers: Buffers,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> list[int]:
    """One step's launches on tensors that are not known yet.

    Args:
        launches: of one step.
        loaded: their kernels.
        buffers: what they write.
        inputs: z_s, z_t, memory and pointer, in the order of :class:`Source`.
    """
    places, workspace_bytes = _places(buffers, inputs)
    gradient = buffers.grad_z_s.untyped_storage().nbytes() // buffers.grad_z_s.element_size()
    encoded = [workspace_bytes, gradient]
    for launch, kernel in zip(launches, loaded, strict=True):
        encoded += _encode(launch, kernel, lambda tensor: places[id(tensor)])
    return encoded
