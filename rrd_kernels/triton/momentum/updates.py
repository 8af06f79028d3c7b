"""Launches of the momentum memory besides its loss: the normalizers' estimate, the update."""

import torch
from torch import Tensor

from rrd_kernels.triton.cards import Hardware
from rrd_kernels.triton.common.launches import row_block, row_warps
from rrd_kernels.triton.momentum.plan import gather_columns, gather_plan
from rrd_kernels.triton.runtime.launch import Kernel, Launch


def update_launch(memory: Tensor, index: Tensor, rows: Tensor, momentum: float) -> Launch:
    """The update of B >= 1 rows."""
    (n_data, dim), batch = memory.shape, rows.shape[0]
    double = torch.float64 in (memory.dtype, rows.dtype)
    return Launch(
        Kernel("momentum.kernels.update", "update"),
        (batch,),
        {
            "memory": memory,
            "index": index,
            "rows": rows,
            "n_data": n_data,
            "batch": batch,
            "index_dim": index.stride(0),
            "rows_row": rows.stride(0),
            "rows_dim": rows.stride(1),
            "memory_row": memory.stride(0),
            "memory_dim": memory.stride(1),
            "momentum": momentum,
        },
        {
            "DTYPE": "float64" if double else "float32",
            "MOMENTUM": momentum != 0,
            "DIM": dim,
            "BLOCK_D": row_block(dim),
            "BLOCK_B": 1024,
        },
        row_warps(dim),
    )


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
    """The estimate of the normalizers; B, P >= 1."""
    (batch, dim), n_data = z_s.shape, memory_v1.shape[0]
    columns = contrast_idx.shape[1]
    plan = gather_plan(batch, columns, dim, hardware)
    programs = batch * plan.splits
    sums = torch.empty((2, programs), dtype=torch.float64, device=z_s.device)
    add = Launch(
        Kernel("momentum.kernels.normalizers", "add_exponentials"),
        (batch, plan.splits, 2),
        {
            "normalizers": normalizers,
            "z_s": z_s,
            "z_t": z_t,
            "memory_v1": memory_v1,
            "memory_v2": memory_v2,
            "contrast_idx": contrast_idx,
            "sums": sums,
            "n_data": n_data,
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
            "DTYPE": "float64",
            "DIM": dim,
            "BLOCK_P": gather_columns(dim),
            "BLOCK_D": row_block(dim),
        },
        4,
    )
    finish = Launch(
        Kernel("momentum.kernels.normalizers", "set_normalizers"),
        (1,),
        {
            "normalizers": normalizers,
            "sums": sums,
            "programs": programs,
            "normalizers_dim": normalizers.stride(0),
            "scale": n_data / (batch * columns),
        },
        {"DTYPE": "float64", "BLOCK": 1024},
        4,
    )
    return add, finish
