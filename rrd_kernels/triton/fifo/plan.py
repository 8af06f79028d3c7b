"""Plans: how a step is divided into programs. By sizes alone, so equal sizes give equal bits."""

import functools
from typing import NamedTuple

from rrd_kernels.triton.cards import (
    FAMILIES,
    LARGE,
    Config,
    Hardware,
    look_up,
    operand_class,
    width_of,
)
from rrd_kernels.triton.common.launches import (
    MAX_SPLITS,
    MERGE_RATE,
    PARTIAL_BYTES,
    RATE,
    best_splits,
    cdiv,
    narrowed,
)


class FifoPlan(NamedTuple):
    """Block sizes and grid of a step of B samples and K memory rows."""

    config: Config
    row_blocks: int
    splits: int
    tiles_per_split: int
    dim_blocks: int
    dim_pad: int
    even: bool  # every tile is full, so that no row needs a mask
    dependent: bool = False  # programmatic dependent launch; sm_90 and later

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.row_blocks, self.splits, self.dim_blocks


def block_sizes(
    batch: int,
    size: int,
    dim: int,
    precision: str,
    memory_bytes: int,
    need_grad: bool,
    hardware: Hardware,
    roles: int = 2,
) -> Config:
    """The block sizes of the card family; arguments as in :func:`make_plan`."""
    family = FAMILIES[hardware.family]
    if not need_grad:
        config = look_up(family.loss_only, precision, dim, memory_bytes)
        if roles == 2:
            return config
        # One query of a sample leaves room for one more tile ahead.
        config = config._replace(num_stages=config.num_stages + 1)
        place = operand_class(precision, memory_bytes), width_of(dim)
        return family.hard_alone.get(place, config)
    small, large = look_up(family.attention, precision, dim, memory_bytes)
    return large if roles * batch * size >= LARGE else small


@functools.lru_cache(maxsize=4096)
def make_plan(
    batch: int,
    size: int,
    dim: int,
    precision: str,
    memory_bytes: int,
    need_grad: bool,
    hardware: Hardware,
    config: Config | None = None,
    splits: int | None = None,
    roles: int = 2,
) -> FifoPlan:
    """The plan for B = ``batch`` >= 1, K = ``size`` >= 1, D = ``dim``.

    Args:
        precision: format of the products' operands: "float32", "tf32", "float16" or "bfloat16".
        memory_bytes: bytes of an element of the memory.
        need_grad: whether to compute the gradient too, or the loss alone.
        hardware: the card.
        config: block sizes; default: the table's.
        splits: at most this many, less those that would be empty; default: the cost model's.
        roles: queries of a sample: 2, or 1 without a teacher's.
    """
    dim_pad = cdiv(dim, 16) * 16
    if config is None:
        config = block_sizes(batch, size, dim, precision, memory_bytes, need_grad, hardware, roles)
    config = narrowed(config, dim)
    if need_grad:
        row_blocks = cdiv(roles * batch, config.block_m)
        dim_blocks = cdiv(dim, config.block_d)
        split_bytes = roles * batch * dim_pad * 4
        products = 2
    else:
        row_blocks = cdiv(batch, config.block_m)
        dim_blocks = 1
        split_bytes = 3 * roles * batch * 4
        products = roles
    tiles = cdiv(size, config.block_n)
    most = max(1, min(MAX_SPLITS, PARTIAL_BYTES // split_bytes))
    if splits is None:
        operations = 2 * products * config.block_m * config.block_n * min(dim_pad, config.block_d)
        splits = best_splits(
            tiles,
            row_blocks * dim_blocks,
            hardware.multiprocessors * config.programs,
            most,
            # The programs of a multiprocessor share its rate.
            tile_time=operations / (RATE / config.programs),
            merge_time=2 * split_bytes / MERGE_RATE,
        )
    tiles_per_split = cdiv(tiles, min(splits, most))
    return FifoPlan(
        config=config,
        row_blocks=row_blocks,
        splits=cdiv(tiles, tiles_per_split),
        tiles_per_split=tiles_per_split,
        dim_blocks=dim_blocks,
        dim_pad=dim_pad,
        even=size % config.block_n == 0,
    )
