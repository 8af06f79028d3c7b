"""The normalizers' estimate, as two kernels and their launches. In float64: once in a training, and
what it sets stays.

Both kernels look at the normalizers on the device and do nothing where both are set.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rrd_kernels.triton.configs import Hardware
from rrd_kernels.triton.plan import row_block
from rrd_kernels.triton.rows import load_row, unit_row
from rrd_kernels.triton.sampled_gather import load_index, products_with
from rrd_kernels.triton.sampled_plan import gather_columns, gather_plan
from rrd_kernels.triton.step import Launch


@triton.jit
def add_exponentials(
    normalizers,
    z_s,
    z_t,
    memory_v1,
    memory_v2,
    contrast_idx,
    sums,
    size,
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
    """Grid: samples, splits of the columns. ``sums[0 / 1, program]``: of exp(s.m / nce_t)."""
    i, split = tl.program_id(0), tl.program_id(1)
    begin = split * columns_per_split
    end = tl.minimum(begin + columns_per_split, columns)
    unset = (tl.load(normalizers) < 0) | (tl.load(normalizers + normalizers_dim) < 0)
    end = tl.where(unset, end, begin)
    student, _ = unit_row(load_row(z_s, i, z_s_row, z_s_dim, DIM, BLOCK_D, DTYPE))
    teacher, _ = unit_row(load_row(z_t, i, z_t_row, z_t_dim, DIM, BLOCK_D, DTYPE))
    student *= inverse_nce_t
    teacher *= inverse_nce_t
    sum_s = tl.zeros((BLOCK_P,), DTYPE)
    sum_t = tl.zeros((BLOCK_P,), DTYPE)
    for first in tl.range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        index, present = load_index(contrast_idx, i, p, columns, size, contrast_row, contrast_dim)
        b = products_with(student, memory_v2, index, present, v2_row, v2_dim, DIM, BLOCK_D)
        a = products_with(teacher, memory_v1, index, present, v1_row, v1_dim, DIM, BLOCK_D)
        sum_s += tl.where(p < columns, tl.exp(b), 0.0)
        sum_t += tl.where(p < columns, tl.exp(a), 0.0)
    program = i * tl.num_programs(1) + split
    tl.store(sums + program, tl.sum(sum_s, axis=0))
    tl.store(sums + tl.num_programs(0) * tl.num_programs(1) + program, tl.sum(sum_t, axis=0))


@triton.jit
def set_normalizers(
    normalizers, sums, programs, normalizers_dim, weight, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: a normalizer that is negative becomes weight * its sum, if that is finite."""
    for view in tl.static_range(2):
        address = normalizers + view * normalizers_dim
        if tl.load(address) < 0:
            total = tl.zeros((BLOCK,), DTYPE)
            for first in tl.range(0, programs, BLOCK):
                at = first + tl.arange(0, BLOCK)
                total += tl.load(sums + view * programs + at, mask=at < programs, other=0.0)
            value = (tl.sum(total, axis=0) * weight).to(normalizers.dtype.element_ty)
            if tl.abs(value) < float("inf"):
                tl.store(address, value)


def normalizer_launches(
    normalizers: Tensor,
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    nce_t: float,
    hardware: Hardware,
) -> tuple[Launch, Launch]:
    """The estimate for B, P >= 1."""
    (batch, dim), size = z_s.shape, memory_v1.shape[0]
    columns = contrast_idx.shape[1]
    plan = gather_plan(batch, columns, dim, hardware)
    programs = batch * plan.splits
    sums = torch.empty((2, programs), dtype=torch.float64, device=z_s.device)
    add = Launch(
        add_exponentials,
        (batch, plan.splits),
        {
            "normalizers": normalizers,
            "z_s": z_s,
            "z_t": z_t,
            "memory_v1": memory_v1,
            "memory_v2": memory_v2,
            "contrast_idx": contrast_idx,
            "sums": sums,
            "size": size,
            "columns": columns,
            "z_s_row": z_s.stride(0),
            "z_s_dim": z_s.stride(1),
            "z_t_row": z_t.stride(0),
            "z_t_dim": z_t.stride(1),
            "v1_row": memory_v1.stride(0),
            "v1_dim": memory_v1.stride(1),
            "v2_row": memory_v2.stride(0),
            "v2_dim": memory_v2.stride(1),
            "contrast_row": contrast_idx.stride(0),
            "contrast_dim": contrast_idx.stride(1),
            "normalizers_dim": normalizers.stride(0),
            "columns_per_split": plan.per_split,
            "inverse_nce_t": 1 / nce_t,
        },
        {
            "DTYPE": tl.float64,
            "DIM": dim,
            "BLOCK_P": gather_columns(dim),
            "BLOCK_D": row_block(dim),
        },
        4,
    )
    finish = Launch(
        set_normalizers,
        (1,),
        {
            "normalizers": normalizers,
            "sums": sums,
            "programs": programs,
            "normalizers_dim": normalizers.stride(0),
            "weight": size / (batch * columns),
        },
        {"DTYPE": tl.float64, "BLOCK": 1024},
        4,
    )
    return add, finish
