"""How a step is cut into programs: from sizes alone, so that equal sizes give equal bits."""

import functools
import math
from typing import NamedTuple

from rrd_kernels.triton.cards import Config, Hardware, attention_config, loss_config

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


class Plan(NamedTuple):
    """What is launched for B samples and K rows."""

    config: Config
    row_blocks: int
    splits: int
    tiles_per_split: int
    dim_blocks: int
    dim_pad: int
    even: bool  # every tile is full, so that no row needs a mask
    dependent: bool = False  # kernels start before their predecessors end; sm_90 and later

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.row_blocks, self.splits, self.dim_blocks


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


@functools.lru_cache(maxsize=4096)
def make_plan(
    batch: int,
    size: int,
    dim: int,
    operand: str,
    memory_bytes: int,
    need_grad: bool,
    hardware: Hardware,
    config: Config | None = None,
    splits: int | None = None,
) -> Plan:
    """The plan for B = ``batch`` >= 1, K = ``size`` >= 1, D = ``dim``.

    Args:
        operand: the products' operands: "float32", "tf32", "float16" or "bfloat16".
        memory_bytes: of an element of the memory.
        need_grad: whether the gradient is wanted, or the loss alone.
        hardware: what it runs on.
        config: block sizes in place of the table's.
        splits: at most, in place of the cost model's; as many as leave none empty.
    """
    dim_pad = cdiv(dim, 16) * 16
    if config is None and need_grad:
        config = attention_config(hardware.family, operand, dim, memory_bytes, 2 * batch * size)
    elif config is None:
        config = loss_config(hardware.family, operand, dim, memory_bytes)
    config = narrowed(config, dim)
    if need_grad:
        row_blocks = cdiv(2 * batch, config.block_m)
        dim_blocks = cdiv(dim, config.block_d)
        split_bytes = 2 * batch * dim_pad * 4
    else:
        row_blocks = cdiv(batch, config.block_m)
        dim_blocks = 1
        split_bytes = 6 * batch * 4
    tiles = cdiv(size, config.block_n)
    most = max(1, min(MAX_SPLITS, PARTIAL_BYTES // split_bytes))
    if splits is None:
        operations = 4 * config.block_m * config.block_n * min(dim_pad, config.block_d)
        splits = best_splits(
            tiles,
            row_blocks * dim_blocks,
            hardware.multiprocessors * config.programs,
            most,
            # Only all of a multiprocessor's programs together reach its rate.
            tile_time=operations / (RATE / config.programs),
            merge_time=2 * split_bytes / MERGE_RATE,
        )
    tiles_per_split = cdiv(tiles, min(splits, most))
    return Plan(
        config=config,
        row_blocks=row_blocks,
        splits=cdiv(tiles, tiles_per_split),
        tiles_per_split=tiles_per_split,
        dim_blocks=dim_blocks,
        dim_pad=dim_pad,
        even=size % config.block_n == 0,
    )
