"""Launches as integers, for ``csrc/cuda/recipe.h``, which states the same layout."""

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from torch import Tensor

from rrd_kernels.triton.runtime.launch import Launch, Loaded


class Source(IntEnum):
    """Where a kernel's parameter comes from; the names are those of ``recipe.h``."""

    STUDENT = 0
    TEACHER = 1
    MEMORY = 2
    PTR = 3
    LOSS = 4
    GRADIENT = 5
    WORKSPACE = 6
    VALUE = 7


Place = tuple[Source, int]


def shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _bits(type_name: str, value: Any) -> int:
    """The number as the kernel reads it, as the first bytes of an int64."""
    if isinstance(value, float):
        packed = struct.pack("<d" if type_name == "fp64" else "<f", value)
        return int.from_bytes(packed, "little", signed=True)
    return int(value)


def encode_launch(launch: Launch, loaded: Loaded, place_of: Callable[[Tensor], Place]) -> list[int]:
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
        encoded += encode_launch(launch, kernel, lambda tensor: (Source.VALUE, tensor.data_ptr()))
    return encoded
