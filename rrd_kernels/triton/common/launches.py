"""What the steps of both memories launch alike: the first kernel, and constants of the last."""

import math
from typing import Any

import torch
from torch import Tensor

from rrd_kernels.bounds import LOG2_E
from rrd_kernels.triton.cards import Config
from rrd_kernels.triton.runtime.launch import Kernel, Launch

#: Bytes that partial sums over splits may take. With the queries and what is returned, a step stays
#: below 16·B·D bytes + 32 MiB.
PARTIAL_BYTES = 24 * 2**20

#: Grids have at most this many programs along their second axis.
MAX_SPLITS = 65535

# What a split costs, in seconds on a card such as an H100; only their proportions matter. A program
# starts in START and multiplies at RATE; partial sums are written and read at MERGE_RATE.
START = 1.5e-6
RATE = (
    3e12  # operations per second and multiprocessor, half of what its tensor cores do in bfloat16
)
MERGE_RATE = 2e12  # bytes per second, most of them in the second-level cache

#: What the products' operands are stored in.
STORAGE = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

#: Splits that a last kernel has room for, at least: so that most batches need one kernel.
FEWEST_SPLITS = 256


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def row_block(dim: int) -> int:
    """Elements of a block that holds a whole row; a dimension of a product is 16 at least."""
    return max(16, next_power_of_2(dim))


def narrowed(config: Config, dim: int) -> Config:
    """The same for rows that are narrower than the table's width."""
    widest = row_block(dim)
    return config._replace(block_k=min(config.block_k, widest), block_d=min(config.block_d, widest))


def best_splits(
    tiles: int, blocks: int, multiprocessors: int, most: int, tile_time: float, merge_time: float
) -> int:
    """The number of splits that takes the least time: waves of programs, then the merge.

    Only numbers that leave no split empty are looked at; the last split may be shorter.

    Args:
        tiles: of memory rows.
        blocks: of queries, each of which goes through all tiles.
        multiprocessors: of the device.
        most: splits that are allowed.
        tile_time: of one tile of one block, in seconds.
        merge_time: of one split, in seconds.
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
        # The next number for which a split is shorter.
        splits = cdiv(tiles, per_split - 1) if per_split > 1 else tiles + 1
    return best


def row_warps(dim: int) -> int:
    """Warps of a program that has a row to itself."""
    return 1 if dim <= 256 else 4


def operand_dtype(precision: str) -> str:
    """The name of what it is stored in."""
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
    dim: int, dim_pad: int, precision: str, enqueue: str, momentum: float
) -> dict[str, Any]:
    """What the first and the last kernel are compiled for."""
    return {
        "ENQUEUE": enqueue,
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
    momentum: float = 0.0,
    dependent: bool = False,
) -> Launch:
    """The queries out of the embeddings, and the enqueue where it comes before."""
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
            "scale_t": LOG2_E / tau_t,
            "momentum": momentum,
        },
        row_constants(dim, queries.shape[1], precision, enqueue, momentum)
        | {"DEPENDENT": dependent},
        row_warps(dim),
    )


def merge_constants(dim: int, splits: int, need_grad: bool, reduction: int) -> dict[str, Any]:
    """What a last kernel is compiled for, beside the width of its rows."""
    return {
        "NEED_GRAD": need_grad,
        "REDUCE": reduction != 0,
        "SPLITS": max(FEWEST_SPLITS, next_power_of_2(splits)),
        # Splits that are added side by side: as many as registers hold, whatever their number, so
        # that no batch needs a kernel of its own.
        "SPLIT_BLOCK": min(16, 2048 // row_block(dim)),
        "BLOCK_B": 1024,
    }


def merge_warps(dim: int) -> int:
    return 4 if dim > 32 else 1
