"""The initial rows of a FIFO memory, as each published code draws them."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels.fifo.shard import Shard

STARTS = ("published", "unit", "unit_columns", "uniform", "zeros")

#: Rows drawn at a time: few enough for any machine. PyTorch's CPU generator makes 16 numbers at a
#: time; a multiple of 16 gives the same numbers in parts as in one draw.
ROWS_AT_ONCE = 2**16


def draw_rows(
    shard: Shard,
    dim: int,
    start: str,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """This rank's rows of a new memory.

    Every rank draws all K rows, a part at a time, and keeps its own. From the same seed, on a CPU,
    a single process draws the same rows and leaves the generator in the same state.

    Args:
        shard: the rows to keep.
        dim: D.
        start: ``"published"``: normal deviates [K, D], each column normalised. ``"unit"``: the
            same, each row normalised. ``"unit_columns"``: normal deviates [D, K], each column
            normalised, transposed. ``"uniform"``: uniform within ±sqrt(3 / D). ``"zeros"``.
        device, dtype: as in :func:`torch.randn`.
    """
    bound = 1 / math.sqrt(dim / 3)

    def draw(rows: int, columns: int) -> Tensor:
        if start == "zeros":
            return torch.zeros(rows, columns, device=device, dtype=dtype)
        if start == "uniform":
            uniform = torch.rand(rows, columns, device=device, dtype=dtype)
            return uniform.mul_(2 * bound).add_(-bound)  # the published order of rounding
        return torch.randn(rows, columns, device=device, dtype=dtype)

    columns = start == "unit_columns"
    if shard.ranks == 1:
        rows = draw(dim, shard.size) if columns else draw(shard.size, dim)
        if start not in ("uniform", "zeros"):
            rows = F.normalize(rows, dim=1 if start == "unit" else 0)
        return rows.T.contiguous() if columns else rows
    kept = torch.empty(shard.rows, dim, device=device, dtype=dtype)
    squares = torch.zeros(dim, device=device, dtype=torch.float64)
    if columns:
        for at, some in _parts(draw, dim, shard.size):
            kept[:, at : at + len(some)] = some[:, shard.first : shard.first + shard.rows].T
    else:
        for at, some in _parts(draw, shard.size, dim):
            squares += some.double().square().sum(0)
            begin, end = max(at, shard.first), min(at + len(some), shard.first + shard.rows)
            if begin < end:
                kept[begin - shard.first : end - shard.first] = some[begin - at : end - at]
    norms = squares.sqrt().clamp_min(1e-12)
    for part in kept.split(ROWS_AT_ONCE):  # in place: a copy may not fit
        if start == "published":
            part.copy_(part.double() / norms)
        elif start.startswith("unit"):
            part.copy_(F.normalize(part, dim=1))
    return kept


def _parts(
    draw: Callable[[int, int], Tensor], rows: int, columns: int
) -> Iterator[tuple[int, Tensor]]:
    """Draws a matrix in parts; yields each part and its first row."""
    most = max(16, min(ROWS_AT_ONCE, 2**23 // columns) // 16 * 16)
    at = 0
    while at < rows:
        count = min(most, rows - at)
        if (rows - at - count) * columns < 16:  # PyTorch draws so few in another way
            count = rows - at
        yield at, draw(count, columns)
        at += count
