"""Which rank holds which of a memory's K rows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels.distributed.ranks import Ranks

#: Rows that are drawn at a time: few enough for any machine, and a multiple of the 16 numbers that
#: PyTorch's CPU generator makes at once, so that the pieces are what one draw would have given.
ROWS_AT_ONCE = 2**16


class Shard(NamedTuple):
    """K rows over W ranks in order, ceil(K / W) to each and what is left to the last, as
    ``torch.chunk`` and DTensor's ``Shard(0)`` have it."""

    size: int
    ranks: int
    rank: int

    @property
    def first(self) -> int:
        """The slot of this rank's first row."""
        return self.rank * self._each

    @property
    def rows(self) -> int:
        """Rows of this rank."""
        return min(self._each, self.size - self.first)

    @property
    def _each(self) -> int:
        return -(-self.size // self.ranks)

    def check(self) -> None:
        """
        Raises:
            ValueError: a rank would have no row.
        """
        if self._each * (self.ranks - 1) >= self.size:
            raise ValueError(
                f"a memory of {self.size} rows cannot be spread over {self.ranks} ranks, "
                f"{self._each} to each: the last would have none; make the memory (nce_k) larger"
            )

    def check_ranks(self, ranks: Ranks) -> None:
        """The memory is still spread as it was made.

        Raises:
            RuntimeError: it is not, as where the group, or another process's copy, came later.
        """
        if ranks.gather == "shard" and (self.rank, self.ranks) != (ranks.rank, ranks.size):
            raise RuntimeError(
                f"these rows are those of rank {self.rank} of {self.ranks}, and this is rank "
                f"{ranks.rank} of {ranks.size}: make the criterion after init_process_group, on "
                f"every rank, and use it before destroy_process_group"
            )

    def part_of(self, rows: Tensor) -> Tensor:
        """This rank's of all K rows."""
        return rows[self.first : self.first + self.rows]


def draw_rows(
    shard: Shard,
    dim: int,
    start: str,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """This rank's rows of a memory that starts with normal deviates.

    Every rank draws all K rows, a few at a time, and keeps its own: from the same seed, on a CPU,
    they are those of one process, and the generator is left where it would have left it.

    Args:
        shard: which rows.
        dim: D.
        start: ``"published"``, each column of the K rows normalised, or ``"unit"``, each row.
        device, dtype: as in :func:`torch.randn`.
    """
    if shard.ranks == 1:
        rows = torch.randn(shard.size, dim, device=device, dtype=dtype)
        return F.normalize(rows, dim=0 if start == "published" else 1)
    kept = torch.empty(shard.rows, dim, device=device, dtype=dtype)
    squares = torch.zeros(dim, device=device, dtype=torch.float64)
    at = 0
    while at < shard.size:
        count = min(ROWS_AT_ONCE, shard.size - at)
        if (shard.size - at - count) * dim < 16:  # so few would be drawn in another way
            count = shard.size - at
        some = torch.randn(count, dim, device=device, dtype=dtype)
        squares += some.double().square().sum(0)
        begin, end = max(at, shard.first), min(at + len(some), shard.first + shard.rows)
        if begin < end:
            kept[begin - shard.first : end - shard.first] = some[begin - at : end - at]
        at += count
    norms = squares.sqrt().clamp_min(1e-12)
    for part in kept.split(ROWS_AT_ONCE):  # in place: a rank may have no room for them twice
        part.copy_(F.normalize(part, dim=1) if start == "unit" else part.double() / norms)
    return kept
