"""Estimates the normalizers, in float64: it runs once in a training, and its result is kept.

Both kernels read the normalizers on the device, and do nothing for one that is set.
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import load_row, unit_row
from rrd_kernels.triton.momentum.kernels.gather import load_index, products_with


@triton.jit
def add_view(
    normalizer,
    z,
    memory,
    contrast_idx,
    sums,
    n_data,
    columns,
    z_row,
    z_dim,
    memory_row,
    memory_dim,
    contrast_row,
    contrast_dim,
    columns_per_split,
    inverse_nce_t,
    DTYPE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``sums[program]`` = sum of exp(z.m / nce_t) over a split of a sample's columns."""
    i, split = tl.program_id(0), tl.program_id(1)
    total = tl.zeros((BLOCK_P,), DTYPE)
    if tl.load(normalizer) < 0:
        query, _ = unit_row(load_row(z, i, z_row, z_dim, DIM, BLOCK_D, DTYPE))
        query *= inverse_nce_t
        begin = split * columns_per_split
        end = tl.minimum(begin + columns_per_split, columns)
        for first in tl.range(begin, end, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P)
            index, present = load_index(
                contrast_idx, i, p, columns, n_data, contrast_row, contrast_dim
            )
            logits = products_with(
                query, memory, index, present, memory_row, memory_dim, DIM, BLOCK_D
            )
            total += tl.where(p < columns, tl.exp(logits), 0.0)
    tl.store(sums + i * tl.num_programs(1) + split, tl.sum(total, axis=0))


@triton.jit
def add_exponentials(
    normalizers,
    z_s,
    z_t,
    memory_v1,
    memory_v2,
    contrast_idx,
    sums,
    n_data,
    columns,
    z_s_row,
    z_s_dim,
    z_t_row,
    z_t_dim,
    v1_row,
    v1_dim,
    v2_row,
    v2_dim,
    contrast_row,
    contrast_dim,
    normalizers_dim,
    columns_per_split,
    inverse_nce_t,
    DTYPE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: samples, splits of the columns, normalizers (the student's, the teacher's). A program
    adds for one normalizer, because for both at once registers spill."""
    if tl.program_id(2) == 0:
        add_view(
            normalizers,
            z_s,
            memory_v2,
            contrast_idx,
            sums,
            n_data,
            columns,
            z_s_row,
            z_s_dim,
            v2_row,
            v2_dim,
            contrast_row,
            contrast_dim,
            columns_per_split,
            inverse_nce_t,
            DTYPE,
            DIM,
            BLOCK_P,
            BLOCK_D,
        )
    else:
        add_view(
            normalizers + normalizers_dim,
            z_t,
            memory_v1,
            contrast_idx,
            sums + tl.num_programs(0) * tl.num_programs(1),
            n_data,
            columns,
            z_t_row,
            z_t_dim,
            v1_row,
            v1_dim,
            contrast_row,
            contrast_dim,
            columns_per_split,
            inverse_nce_t,
            DTYPE,
            DIM,
            BLOCK_P,
            BLOCK_D,
        )


@triton.jit
def set_normalizers(
    normalizers, sums, programs, normalizers_dim, scale, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """One program sets each negative normalizer to scale * its sum, if that is finite."""
    for view in tl.static_range(2):
        address = normalizers + view * normalizers_dim
        if tl.load(address) < 0:
            total = tl.zeros((BLOCK,), DTYPE)
            for first in tl.range(0, programs, BLOCK):
                at = first + tl.arange(0, BLOCK)
                total += tl.load(sums + view * programs + at, mask=at < programs, other=0.0)
            value = (tl.sum(total, axis=0) * scale).to(normalizers.dtype.element_ty)
            if tl.abs(value) < float("inf"):
                tl.store(address, value)
