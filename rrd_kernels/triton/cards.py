"""Which block sizes a step has: from a fixed table, by device, operands, width and size."""

import functools
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch

from rrd_kernels.triton.fifo.table import ATTENTION, COLUMN, LOSS, WIDTHS, Config

#: The widest rows that the kernels hold.
MAX_DIM = WIDTHS[-1]

#: The most memory rows, whose numbers the kernels count in 32 bits.
MAX_ROWS = 2**31 - 2**16

#: 2·B·K from which a problem is large, with blocks for the tensor cores' rate rather than for many
#: multiprocessors.
LARGE = 2**25

HALF = ("float16", "bfloat16")

Blocks = TypeVar("Blocks")


class Hardware(NamedTuple):
    """What a plan depends on."""

    family: str  # a key of the table, or of COLUMN
    multiprocessors: int


def family_of(index: int | None) -> str | None:
    """The family of a GPU; ``None`` for one that is too old."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return "gfx942"  # 64 KiB of local memory, as all of AMD's
    roomy = properties.shared_memory_per_block_optin >= 163 * 1024
    return family_of_capability(properties.major, properties.minor, roomy)


def family_of_capability(major: int, minor: int, roomy: bool | None = None) -> str | None:
    """The table's key for NVIDIA's cards; ``roomy``: whether a program may have 163 KiB of shared
    memory, if that is known."""
    if major < 8:
        return None
    if (major, minor) == (9, 0):
        return "sm_90"
    if major == 10:
        return "sm_100"
    if roomy is None:
        roomy = (major, minor) in ((8, 0), (8, 7))
    return "sm_80" if roomy else "sm_86"


@functools.cache
def arch_of(index: int) -> str:
    """The compute capability of a GPU, as compilers name it."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{10 * major + minor}"


@functools.lru_cache
def hardware_of(device: torch.device) -> Hardware:
    """What a GPU is planned for.

    Raises:
        RuntimeError: there is nothing in the table for it.
    """
    family = family_of(device.index)
    if family is None:
        raise RuntimeError(f"rrd_kernels has no kernels for {torch.cuda.get_device_name(device)}")
    return Hardware(family, torch.cuda.get_device_properties(device).multi_processor_count)


def width_of(dim: int) -> int:
    return next(width for width in WIDTHS if dim <= width)


def operand_class(operand: str, memory_bytes: int) -> str:
    """The table's name for operands that come out of a memory of ``memory_bytes`` an element: half
    precision that is float32 on its way takes as much room as TF32."""
    if operand in HALF:
        return "half" if memory_bytes == 2 else "tf32"
    return operand


def look_up(
    table: Mapping[str, Mapping[str, Mapping[int, Blocks]]],
    family: str,
    operand: str,
    dim: int,
    memory_bytes: int,
) -> Blocks:
    """What a table has for products of ``operand`` with a memory of ``memory_bytes`` an element."""
    column = table[COLUMN.get(family, family)]
    return column[operand_class(operand, memory_bytes)][width_of(dim)]


def attention_config(family: str, operand: str, dim: int, memory_bytes: int, work: int) -> Config:
    """Block sizes of the kernel for loss and gradient, for ``work`` = 2·B·K."""
    small, large = look_up(ATTENTION, family, operand, dim, memory_bytes)
    return large if work >= LARGE else small


def loss_config(family: str, operand: str, dim: int, memory_bytes: int) -> Config:
    """Block sizes of the kernel for the loss alone; its blocks are of samples, not of queries, and
    it has no use for ``block_d``."""
    return look_up(LOSS, family, operand, dim, memory_bytes)


def input_precision(family: str, operand: str) -> str:
    """Triton's name for how float32 operands are multiplied; half precision ignores it."""
    if operand == "float32":
        # AMD's matrix units have float32; NVIDIA's take three products of TensorFloat-32.
        return "ieee" if family == "gfx942" else "tf32x3"
    return "tf32" if operand == "tf32" else "ieee"
