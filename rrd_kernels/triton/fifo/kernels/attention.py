"""The second kernel: attention of queries over a split of the memory, K = V = memory.

Logits are in units of log 2, because queries include the factor log2(e) / tau. Each program takes
a block of queries and a split. It writes two sums, which the last kernel merges: of the weights
2^(logit - shift), and of the weighted rows.
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.tiles import load_queries, load_tile, logits_of


@triton.jit
def as_operand(weights, OPERAND: tl.constexpr, INPUT_PRECISION: tl.constexpr, NVIDIA: tl.constexpr):
    """The weights as OPERAND, and the same values in float32 for their sum. The weights are
    rounded; for TF32 their low bits are cut off, as the hardware does it."""
    if INPUT_PRECISION == "tf32" and OPERAND == tl.float32:
        bits = weights.to(tl.int32, bitcast=True) & -8192
        weights = bits.to(tl.float32, bitcast=True)
    if OPERAND == tl.bfloat16 and NVIDIA:
        # Converts two weights per instruction. With `.to`, whose results the sum takes one by one,
        # the compiler would convert each by itself, at the slow rate of exp2.
        operand, rounded = tl.inline_asm_elementwise(
            """
            cvt.rn.bf16x2.f32 $0, $4, $3;
            shl.b32 $1, $0, 16;
            and.b32 $2, $0, 0xffff0000;
            """,
            "=r,=r,=r,r,r",
            [weights],
            dtype=(tl.bfloat16, tl.float32),
            is_pure=True,
            pack=2,
        )
    else:
        operand = weights.to(OPERAND)
        rounded = operand.to(tl.float32)
    return operand, rounded


@triton.jit
def reordered_weights(weights, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """In each eight columns, the even ones first, then the odd ones. A product leaves columns 2t
    and 2t + 1 in thread t; the next one reads t and t + 4 there. In this order both are the same,
    which saves shuffles."""
    pairs = tl.reshape(weights, (BLOCK_M, BLOCK_N // 8, 4, 2))
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (BLOCK_M, BLOCK_N))


@triton.jit
def reordered_rows(
    tile,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WARPS: tl.constexpr,
):
    """The tile's rows in the order of :func:`reordered_weights`.

    The tensor cores need TF32 rows transposed, which the compiler does in registers. Split and join
    keep the values and change only the layout: a thread holds a column, not a part of a row. With
    parts of rows, sixteen threads of a warp would store to the same bank of shared memory.
    """
    parts = tl.reshape(tile, (BLOCK_N // 8, 2, 2, 2, BLOCK_D))
    if WARPS == 4:
        first, second = tl.split(tl.permute(parts, (0, 3, 1, 4, 2)))
    else:
        first, second = tl.split(tl.permute(parts, (0, 3, 2, 4, 1)))
    # Opaque moves: newer compilers would otherwise cancel the split and the join.
    first = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [first], tl.float32, True, 1)
    second = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [second], tl.float32, True, 1)
    if WARPS == 4:
        parts = tl.permute(tl.join(first, second), (0, 1, 2, 4, 3))
    else:
        parts = tl.permute(tl.join(first, second), (0, 1, 4, 2, 3))
    return tl.reshape(parts, (BLOCK_N, BLOCK_D))


@triton.jit
def weight_sums(
    weights, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SUMS_PER_QUERY: tl.constexpr
):
    """Sums of weights [BLOCK_M, SUMS_PER_QUERY]: column j is added to sum j % SUMS_PER_QUERY."""
    return tl.sum(tl.reshape(weights, (BLOCK_M, BLOCK_N // SUMS_PER_QUERY, SUMS_PER_QUERY)), axis=1)


@triton.jit
def wait_for_queries(DEPENDENT: tl.constexpr):
    """Waits until the first kernel has ended and its results can be read.

    The last kernel may start once every program has passed this point. By then each has waited for
    the first kernel, so the last kernel need not.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def out_of_bounds(total, rows_seen, bound):
    """Whether a sum of weights proves that a logit was not within ``bound``. False for NaN: a
    second pass would give NaN too."""
    return (total < rows_seen * tl.exp2(-bound)) | (total > rows_seen * tl.exp2(bound))


@triton.jit
def attend(
    queries,
    memory,
    partials,
    stats,
    batch,
    size,
    stride_row,
    stride_dim,
    tiles_per_split,
    bound_s,
    bound_t,
    ROLES: tl.constexpr,
    OPERAND: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    NVIDIA: tl.constexpr,
    BOUNDED: tl.constexpr,
    EVEN: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUMS_PER_QUERY: tl.constexpr,
    REORDER_WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid: blocks of queries, splits, blocks of D.

    Writes ``partials[split, query]`` = sum of weight * row, and ``stats[split, 0 / 1, query]`` =
    shift and sum of weights. Queries are the B samples' of the student, then, with two ROLES, the
    teacher's. BOUNDED: the caller promises logits within ``bound_s``, ``bound_t``,
    so the shift is 0. A split whose sums break the promise is done again with a running maximum.
    """
    wait_for_queries(DEPENDENT)
    count = ROLES * batch
    split = tl.program_id(1)
    at = tl.program_id(2) * BLOCK_D
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_queries(queries, rows, count, 0, DIM_PAD, BLOCK_K)
    # The largest float16 weight is 2^15, so that weights down to 2^-29 of it are normal numbers.
    HEADROOM: tl.constexpr = 15.0 if OPERAND == tl.float16 else 0.0

    begin = split * tiles_per_split * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, size)
    shift = tl.zeros((BLOCK_M,), tl.float32)
    totals = tl.zeros((BLOCK_M, SUMS_PER_QUERY), tl.float32)
    output = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    if BOUNDED:
        for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
            logits, tile = logits_of(
                q, queries, rows, count, memory, first, size, stride_row, stride_dim, OPERAND,
                INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
                DIM <= 128,
            )  # fmt: skip
            if DIM > BLOCK_K:
                tile = load_tile(
                    memory, first, size, stride_row, stride_dim, at, OPERAND, EVEN, DIM, BLOCK_N,
                    BLOCK_D,
                )  # fmt: skip
            weights, rounded = as_operand(tl.exp2(logits), OPERAND, INPUT_PRECISION, NVIDIA)
            # The rounded weights multiply the rows: a sum of others would not make them 1 in all.
            totals += weight_sums(rounded, BLOCK_M, BLOCK_N, SUMS_PER_QUERY)
            if REORDER_WARPS:
                weights = reordered_weights(weights, BLOCK_M, BLOCK_N)
                tile = reordered_rows(tile, BLOCK_N, BLOCK_D, REORDER_WARPS)
            output = tl.dot(weights, tile, output, input_precision=INPUT_PRECISION)
        total = tl.sum(totals, axis=1)
        bound = tl.where(rows < batch, bound_s, bound_t)
        rows_seen = (end - begin).to(tl.float32)
        broken = out_of_bounds(total, rows_seen, bound)
        again = tl.max((broken & (rows < count)).to(tl.int32), axis=0) != 0
        redo_end = tl.where(again, end, begin)
        total = tl.where(again, 0.0, total)
        output = tl.where(again, 0.0, output)
        shift = tl.where(again, float("-inf"), shift)
    else:
        total = tl.zeros((BLOCK_M,), tl.float32)
        redo_end = end
        shift += float("-inf")

    for first in tl.range(begin, redo_end, BLOCK_N, num_stages=1 if BOUNDED else STAGES):
        logits, tile = logits_of(
            q, queries, rows, count, memory, first, size, stride_row, stride_dim, OPERAND,
            INPUT_PRECISION, EVEN, DIM, DIM_PAD, BLOCK_M, BLOCK_N, BLOCK_K,
            DIM <= 128,
        )  # fmt: skip
        if DIM > BLOCK_K:
            tile = load_tile(
                memory, first, size, stride_row, stride_dim, at, OPERAND, EVEN, DIM, BLOCK_N,
                BLOCK_D,
            )  # fmt: skip
        larger = tl.maximum(shift, tl.max(logits, axis=1) - HEADROOM)
        weights = tl.exp2(logits - larger[:, None])
        weights, rounded = as_operand(weights, OPERAND, INPUT_PRECISION, NVIDIA)
        shrink = tl.exp2(shift - larger)
        total = total * shrink + tl.sum(rounded, axis=1)
        output = tl.dot(weights, tile, output * shrink[:, None], input_precision=INPUT_PRECISION)
        shift = larger

    stat = stats + split.to(tl.int64) * 3 * count + rows
    inside = rows < count
    if tl.program_id(2) == 0:
        tl.store(stat, shift, mask=inside)
        tl.store(stat + count, total, mask=inside)
    # Partials may overwrite the queries: wait until all threads have read them.
    tl.debug_barrier()
    d = at + tl.arange(0, BLOCK_D)
    place = (split.to(tl.int64) * count + rows)[:, None] * DIM_PAD + d[None, :]
    tl.store(partials + place, output, mask=inside[:, None] & (d[None, :] < DIM_PAD))
