"""The second kernel: queries against a part of the memory, K = V = memory.

Logits are in units of log 2, since the queries carry log2(e) / tau. Each program takes a block of
queries and a split of the memory and leaves sums that the last kernel merges: of the weights
2^(logit - shift), and of the weighted rows.
"""

import triton
import triton.language as tl

from rrd_kernels.triton.common.kernels.tiles import load_queries, load_tile, logits_of


@triton.jit
def as_operand(weights, OPERAND: tl.constexpr, INPUT_PRECISION: tl.constexpr, NVIDIA: tl.constexpr):
    """Weights as they are multiplied, and the same numbers in float32, for their sum: rounded, or
    with the bits cut off that the hardware cuts off for TF32."""
    if INPUT_PRECISION == "tf32" and OPERAND == tl.float32:
        bits = weights.to(tl.int32, bitcast=True) & -8192
        weights = bits.to(tl.float32, bitcast=True)
    if OPERAND == tl.bfloat16 and NVIDIA:
        # Two to an instruction. From `.to`, whose results are looked at one by one afterwards, the
        # compiler makes an instruction for each, at the slow rate of exp2.
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
    """Of each eight columns the even ones, then the odd ones: a thread of the tensor cores' warps
    has columns 2 t and 2 t + 1 of what they multiplied, and gives them columns t and t + 4."""
    pairs = tl.reshape(weights, (BLOCK_M, BLOCK_N // 8, 4, 2))
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (BLOCK_M, BLOCK_N))


@triton.jit
def reordered_rows(
    tile,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WARPS: tl.constexpr,
):
    """The rows in the order of :func:`reordered_weights`.

    The tensor cores want TF32 rows transposed, which the compiler does in registers. The split and
    the join change nothing but where it holds them: each thread a column and not a part of a row,
    with which it would store to one bank of shared memory sixteen times.
    """
    parts = tl.reshape(tile, (BLOCK_N // 8, 2, 2, 2, BLOCK_D))
    if WARPS == 4:
        even, odd = tl.split(tl.permute(parts, (0, 3, 1, 4, 2)))
    else:
        even, odd = tl.split(tl.permute(parts, (0, 3, 2, 4, 1)))
    # Or newer compilers see that they are joined again.
    even = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [even], tl.float32, True, 1)
    odd = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [odd], tl.float32, True, 1)
    if WARPS == 4:
        parts = tl.permute(tl.join(even, odd), (0, 1, 2, 4, 3))
    else:
        parts = tl.permute(tl.join(even, odd), (0, 1, 4, 2, 3))
    return tl.reshape(parts, (BLOCK_N, BLOCK_D))


@triton.jit
def partial_sums(weights, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTIAL_SUMS: tl.constexpr):
    """A row's weights as PARTIAL_SUMS sums, [BLOCK_M, PARTIAL_SUMS]: a thread adds up its own."""
    return tl.sum(tl.reshape(weights, (BLOCK_M, BLOCK_N // PARTIAL_SUMS, PARTIAL_SUMS)), axis=1)


@triton.jit
def wait_for_queries(DEPENDENT: tl.constexpr):
    """Returns when the first kernel has ended and what it wrote can be read.

    The last kernel may start once every program has come past here: never before the first one has
    ended, for which it does not wait itself.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


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
    PARTIAL_SUMS: tl.constexpr,
    REORDER_WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid: blocks of queries, splits, blocks of D.

    Writes ``partials[split, query]`` = sum of weight * row, and ``stats[split, 0 / 1, query]`` =
    shift and sum of weights. BOUNDED is the caller's promise that logits lie within
    ``bound``, so that no shift is needed; a split whose sums show otherwise is done again.
    """
    wait_for_queries(DEPENDENT)
    count = 2 * batch
    split = tl.program_id(1)
    at = tl.program_id(2) * BLOCK_D
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_queries(queries, rows, count, 0, DIM_PAD, BLOCK_K)
    # float16 weights reach up to 2^15, so that those of 2^-29 of the largest are still normal.
    HEADROOM: tl.constexpr = 15.0 if OPERAND == tl.float16 else 0.0

    begin = split * tiles_per_split * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, size)
    shift = tl.zeros((BLOCK_M,), tl.float32)
    totals = tl.zeros((BLOCK_M, PARTIAL_SUMS), tl.float32)
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
            # The sum is of the weights as multiplied, or equal rows would not weigh one in all.
            totals += partial_sums(rounded, BLOCK_M, BLOCK_N, PARTIAL_SUMS)
            if REORDER_WARPS:
                weights = reordered_weights(weights, BLOCK_M, BLOCK_N)
                tile = reordered_rows(tile, BLOCK_N, BLOCK_D, REORDER_WARPS)
            output = tl.dot(weights, tile, output, input_precision=INPUT_PRECISION)
        total = tl.sum(totals, axis=1)
        bound = tl.where(rows < batch, bound_s, bound_t)
        rows_seen = (end - begin).to(tl.float32)
        # NaN is no reason: it would only come again.
        broken = (total < rows_seen * tl.exp2(-bound)) | (total > rows_seen * tl.exp2(bound))
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
    # The queries may have lain where the sums go: all threads have read them.
    tl.debug_barrier()
    d = at + tl.arange(0, BLOCK_D)
    place = (split.to(tl.int64) * count + rows)[:, None] * DIM_PAD + d[None, :]
    tl.store(partials + place, output, mask=inside[:, None] & (d[None, :] < DIM_PAD))
