"""For both memories: numbers of splits, the first kernel, constants of the last one."""

import math
from typing import Any

import torch
from torch import Tensor

from rrd_kernels.bounds import LOG2_E
from rrd_kernels.triton.cards import Config
from rrd_kernels.triton.runtime.launch import Kernel, Launch

#: The largest size of the partials, in bytes. With its queries and outputs a step stays below
#: 16·B·D bytes + 32 MiB.
PARTIAL_BYTES = 24 * 2**20

#: Grids have at most this many programs along their second axis.
MAX_SPLITS = 65535

# Cost model of a split, for a card such as an H100; only ratios matter. START: seconds to start a
# program. RATE: of its products. MERGE_RATE: of writing and reading partials.
START = 1.5e-6
RATE = (
    3e12  # operations per second and multiprocessor, half of what its tensor cores do in bfloat16
)
MERGE_RATE = 2e12  # bytes per second, most of them in the second-level cache

#: Storage dtype of the products' operands, by precision.
STORAGE = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

#: The smallest SPLITS of a last kernel, so that most batches share one compiled kernel.
FEWEST_SPLITS = 256


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def row_block(dim: int) -> int:
    """Elements of a block that holds a whole row: a power of 2; products need 16 at least."""
    return max(16, next_power_of_2(dim))


def narrowed(config: Config, dim: int) -> Config:
    """``config`` with blocks no wider than a row of ``dim`` elements needs."""
    widest = row_block(dim)
    return config._replace(block_k=min(config.block_k, widest), block_d=min(config.block_d, widest))


def best_splits(
    tiles: int, blocks: int, multiprocessors: int, most: int, tile_time: float, merge_time: float
) -> int:
    """The number of splits with the least estimated time: waves of programs, then the merge.

    Considers only numbers that leave no split empty; the last split may be shorter.

    Args:
        tiles: number of tiles of the memory.
        blocks: number of programs for each tile: one per block of queries (and of D).
        multiprocessors: programs that run at a time.
        most: the largest number of splits.
        tile_time: seconds for one tile in one program.
        merge_time: seconds for one split.
    """
    best, least = 1, math.inf
    splits = 1
    while splits <= min(tiles, most):
        per_split = cdiv(tiles, splits)
        splits = cdiv(tiles, per_split)
        waves = cdiv(blocks * splits, multiprocessors)
        time = waves * (START + per_split * tile_time) + splits * merge_time
        if time < least:
            best, least = splits, time
        # Go on to the next number that makes the splits shorter.
        splits = cdiv(tiles, per_split - 1) if per_split > 1 else tiles + 1
    return best


def row_warps(dim: int) -> int:
    """Warps of a program that handles one row."""
    return 1 if dim <= 256 else 4


def operand_dtype(precision: str) -> str:
    """The name of the operands' storage dtype for ``precision``."""
    return str(STORAGE[precision]).removeprefix("torch.")


def embeddings_of(z_s: Tensor, z_t: Tensor, memory: Tensor) -> dict[str, int]:
    """Sizes and strides that the first and the last kernel share."""
    return {
        "batch": z_s.shape[0],
        "size": memory.shape[0],
        "z_s_row": z_s.stride(0),
        "z_s_dim": z_s.stride(1),
        "z_t_row": z_t.stride(0),
        "z_t_dim": z_t.stride(1),
        "memory_row": memory.stride(0),
        "memory_dim": memory.stride(1),
    }


def row_constants(
    dim: int, dim_pad: int, precision: str, enqueue: str, newest_first: bool, momentum: float
) -> dict[str, Any]:
    """Compile-time constants that the first and the last kernel share."""
    return {
        "ENQUEUE": enqueue,
        "NEWEST_FIRST": newest_first and enqueue != "never",
        "MOMENTUM": momentum != 0,
        "TF32": precision == "tf32",
        "DIM": dim,
        "DIM_PAD": dim_pad,
        "BLOCK_D": row_block(dim),
    }


def prepare_launch(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    ptr: Tensor | None,
    queries: Tensor,
    progress: Tensor,
    *,
    tau_s: float,
    tau_t: float,
    precision: str,
    enqueue: str = "never",
    newest_first: bool = False,
    momentum: float = 0.0,
    dependent: bool = False,
) -> Launch:
    """The first kernel: makes the queries, none of the teacher if ``tau_t`` is 0, and enqueues if
    ``enqueue`` is "before"."""
    batch, dim = z_s.shape
    return Launch(
        Kernel("common.kernels.prepare", "prepare"),
        (batch,),
        {
            "z_s": z_s,
            "z_t": z_t,
            "memory": memory,
            "ptr": progress if ptr is None else ptr,
            "queries": queries,
            "progress": progress,
            **embeddings_of(z_s, z_t, memory),
            "scale_s": LOG2_E / tau_s,
            "scale_t": LOG2_E / tau_t if tau_t else None,
            "momentum": momentum,
        },
        row_constants(dim, queries.shape[1], precision, enqueue, newest_first, momentum)
        | {"ROLES": 2 if tau_t else 1, "DEPENDENT": dependent},
        row_warps(dim),
    )


def merge_constants(dim: int, splits: int, need_grad: bool, reduction: int) -> dict[str, Any]:
    """Compile-time constants of a last kernel, besides the width of its rows."""
    return {
        "NEED_GRAD": need_grad,
        "REDUCE": reduction != 0,
        "SPLITS": max(FEWEST_SPLITS, next_power_of_2(splits)),
        # Splits that are added at a time. Set by the registers, not by the number of splits, so
        # that no batch needs a kernel of its own.
        "SPLIT_BLOCK": max(1, min(16, 2048 // row_block(dim))),
        "BLOCK_B": 1024,
    }


def merge_warps(dim: int) -> int:
    """Warps of a program that merges splits into one row."""
    if dim <= 32:
        return 1
    return 4 if dim <= 1024 else 8
