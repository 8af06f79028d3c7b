"""Plans of the sampled loss: its method and its division into programs, by sizes alone."""

from typing import NamedTuple

from rrd_kernels.triton.cards import FAMILIES, MAX_ROWS, Config, Hardware, look_up
from rrd_kernels.triton.common.launches import (
    MAX_SPLITS,
    MERGE_RATE,
    PARTIAL_BYTES,
    RATE,
    best_splits,
    cdiv,
    narrowed,
    row_block,
)


class Form(NamedTuple):
    """What plans depend on in a loss."""

    overhead: int  # samples that reading a row costs as much as, in the dense method
    ratio: int  # samples whose products with a row cost as much as gathering one
    logits: int  # that a program of the dense method computes for a sample and a row
    gradients: int  # of a sample, whose partials are kept at a time
    block_n: int  # the most rows of a tile
    num_warps: int  # the fewest of a program of the dense method


# Estimated seconds, by which "auto" chooses the method: float32 on an H200 with 4.3 TB/s and
# 100 TFLOP/s (three products of TensorFloat-32), n rows in a memory.
#
#     dense    10·B·n·D operations, 4·n·D elements read    n·D·(B·1.0e-13 + 3.7e-12)
#     gather   3·B·P·D elements read                       B·P·D·2.8e-12
#
# Dense is faster where n·(37 + B) < 28·B·P. The ratio is below 28 for two reasons. Dense also
# counts the columns, a fifth of its time at D = 128. For gather, rows that several samples want
# come from the second-level cache. Nothing here is measured.
RELATIONAL = Form(overhead=37, ratio=16, logits=2, gradients=1, block_n=64, num_warps=4)

# The same, where each view has a gradient of its own and is read once:
#
#     dense    8·B·n·D operations, 2·n·D elements read     n·D·(B·0.8e-13 + 1.9e-12)
#     gather   2·B·P·D elements read                       B·P·D·1.9e-12
#
# Dense is faster where n·(23 + B) < 23·B·P; of this ratio the same part is taken. The loss's series
# needs registers: with 64 rows it spills on an H200 at D = 128, with four warps on a B200.
CONTRASTIVE = Form(overhead=23, ratio=13, logits=1, gradients=2, block_n=32, num_warps=8)

#: Programs of a gather for each multiprocessor, so that enough loads are in flight.
RESIDENT = 16

#: Elements of the rows that a program gathers at a time.
GATHERED = 2048


class MomentumPlan(NamedTuple):
    """The splits for B samples of P columns, in memories of n rows."""

    dim_pad: int
    splits: int
    per_split: int  # tiles of the memory (dense), columns (gather)


def is_dense(method: str, batch: int, columns: int, n_data: int, form: Form = RELATIONAL) -> bool:
    """Whether all rows are multiplied; false for more rows than 32 bits can number."""
    if n_data > MAX_ROWS or method == "gather":
        return False
    return method == "dense" or n_data * (form.overhead + batch) <= form.ratio * batch * columns


def dense_plan(
    batch: int,
    n_data: int,
    dim: int,
    precision: str,
    memory_bytes: int,
    hardware: Hardware,
    form: Form = RELATIONAL,
) -> tuple[MomentumPlan, Config]:
    """The plan of the dense method, which multiplies all ``n_data`` rows, and its block sizes.

    Args:
        precision: format of the products' operands: "float32", "tf32", "float16" or "bfloat16".
        memory_bytes: bytes of an element of the memories.
    """
    dim_pad = cdiv(dim, 16) * 16
    dense = FAMILIES[hardware.family].dense
    config = narrowed(look_up(dense, precision, dim, memory_bytes), dim)
    rows, warps = min(config.block_n, form.block_n), max(config.num_warps, form.num_warps)
    config = config._replace(block_n=rows, num_warps=warps)
    tiles = cdiv(n_data, config.block_n)
    split_bytes = batch * dim_pad * 4
    operations = 2 * config.block_m * config.block_n * (form.logits * dim_pad + config.block_d)
    splits = best_splits(
        tiles,
        cdiv(batch, config.block_m) * cdiv(dim, config.block_d),
        hardware.multiprocessors,
        most=max(1, min(MAX_SPLITS, PARTIAL_BYTES // (form.gradients * split_bytes))),
        tile_time=operations / RATE,
        merge_time=2 * split_bytes / MERGE_RATE,
    )
    return MomentumPlan(dim_pad, splits, cdiv(tiles, splits)), config


def gather_columns(dim: int) -> int:
    """Columns whose rows a program gathers at a time."""
    return max(1, GATHERED // row_block(dim))


def gather_plan(
    batch: int, columns: int, dim: int, hardware: Hardware, form: Form = RELATIONAL
) -> MomentumPlan:
    """The plan of the gather method, which reads the sampled rows only."""
    dim_pad = cdiv(dim, 16) * 16
    block = gather_columns(dim)
    tiles = cdiv(columns, block)
    most = min(MAX_SPLITS, PARTIAL_BYTES // (form.gradients * batch * dim_pad * 4))
    wanted = cdiv(hardware.multiprocessors * RESIDENT, batch)
    per_split = cdiv(tiles, max(1, min(tiles, most, wanted)))
    return MomentumPlan(dim_pad, cdiv(tiles, per_split), per_split * block)
