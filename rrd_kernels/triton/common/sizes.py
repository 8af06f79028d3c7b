"""Sizes of blocks, and numbers of splits by a model of their cost."""

import math

from rrd_kernels.triton.cards import Config

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
