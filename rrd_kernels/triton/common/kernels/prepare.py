"""The first kernel of a step: makes queries of embeddings; may enqueue before the loss."""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.rows import (
    first_slot,
    load_row,
    query_of,
    unit_row,
    write_slot,
)


@triton.jit
def store_query(
    queries,
    row,
    z,
    scale,
    TF32: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes a row of the queries, with zeros up to DIM_PAD."""
    d = tl.arange(0, BLOCK_D)
    unit, _ = unit_row(z)
    address = queries + tl.cast(row, tl.int64) * DIM_PAD + d
    query = query_of(unit, scale, queries.dtype.element_ty, TF32)
    tl.store(address, query, mask=d < DIM_PAD)


@triton.jit
def prepare(
    z_s,
    z_t,
    memory,
    ptr,
    queries,
    progress,
    batch,
    size,
    z_s_row,
    z_s_dim,
    z_t_row,
    z_t_dim,
    memory_row,
    memory_dim,
    scale_s,
    scale_t,
    momentum,
    ROLES: tl.constexpr,
    ENQUEUE: tl.constexpr,
    NEWEST_FIRST: tl.constexpr,
    MOMENTUM: tl.constexpr,
    TF32: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One program per sample writes rows ``i`` and ``batch + i`` of the queries [2B, DIM_PAD]; with
    one role, the student's, row ``i`` of [B, DIM_PAD].

    Writes ``progress``, int64 [2], for the last kernel: the first slot to enqueue at, because that
    kernel overwrites ``ptr``; and 0, where it counts its finished programs.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
    i = tl.program_id(0)
    student = load_row(z_s, i, z_s_row, z_s_dim, DIM, BLOCK_D)
    if ROLES == 2 or ENQUEUE == "before":
        teacher = load_row(z_t, i, z_t_row, z_t_dim, DIM, BLOCK_D)
    if ENQUEUE != "never":
        start = tl.load(ptr)  # before the stores: the compiler moves no load ahead of them
    store_query(queries, i, student, scale_s, TF32, DIM_PAD, BLOCK_D)
    if ROLES == 2:
        store_query(queries, batch + i, teacher, scale_t, TF32, DIM_PAD, BLOCK_D)
    if i == 0:
        tl.store(progress + 1, 0)
    if ENQUEUE != "never":
        first = first_slot(start, batch, size, NEWEST_FIRST)
        if ENQUEUE == "before":
            write_slot(
                memory,
                (first + i) % size,
                memory_row,
                memory_dim,
                teacher,
                momentum,
                MOMENTUM,
                DIM,
                BLOCK_D,
            )
        if i == 0:
            tl.store(progress, first)
