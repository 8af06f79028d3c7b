"""The normalizers' estimate, as two kernels and their launches. In float64: once in a training, and
what it sets stays.

Both kernels look at the normalizers on the device, and do nothing for one that is set.
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
    normalizer,
    z,
    memory,
    contrast_idx,
    sums,
    size,
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
    """Grid: samples, splits of the columns. ``sums[program]``: of exp(z.m / nce_t)."""
    i, split = tl.program_id(0), tl.program_id(1)
    begin = split * columns_per_split
    end = tl.minimum(begin + columns_per_split, columns)
    end = tl.where(tl.load(normalizer) < 0, end, begin)
    query, _ = unit_row(load_row(z, i, z_row, z_dim, DIM, BLOCK_D, DTYPE))
    query *= inverse_nce_t
    total = tl.zeros((BLOCK_P,), DTYPE)
    for first in tl.range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        index, present = load_index(contrast_idx, i, p, columns, size, contrast_row, contrast_dim)
        logits = products_with(query, memory, index, present, memory_row, memory_dim, DIM, BLOCK_D)
        total += tl.where(p < columns, tl.exp(logits), 0.0)
    tl.store(sums + i * tl.num_programs(1) + split, tl.sum(total, axis=0))


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
) -> tuple[Launch, Launch, Launch]:
    """The estimate for B, P >= 1: the sums of either normalizer, then both."""
    (batch, dim), size = z_s.shape, memory_v1.shape[0]
    columns = contrast_idx.shape[1]
    plan = gather_plan(batch, columns, dim, hardware)
    programs = batch * plan.splits
    sums = torch.empty((2, programs), dtype=torch.float64, device=z_s.device)

    def add(view: int, z: Tensor, memory: Tensor) -> Launch:
        return Launch(
            add_exponentials,
            (batch, plan.splits),
            {
                "normalizer": normalizers[view],
                "z": z,
                "memory": memory,
                "contrast_idx": contrast_idx,
                "sums": sums[view],
                "size": size,
                "columns": columns,
                "z_row": z.stride(0),
                "z_dim": z.stride(1),
                "memory_row": memory.stride(0),
                "memory_dim": memory.stride(1),
                "contrast_row": contrast_idx.stride(0),
                "contrast_dim": contrast_idx.stride(1),
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
    return add(0, z_s, memory_v2), add(1, z_t, memory_v1), finish
