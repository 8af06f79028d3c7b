"""Which rank holds which of a memory's K rows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels.distributed.ranks import Ranks

#: Rows drawn at a time: few enough for any machine. PyTorch's CPU generator makes 16 numbers at a
#: time; a multiple of 16 gives the same numbers in parts as in one draw.
ROWS_AT_ONCE = 2**16


class Shard(NamedTuple):
    """K rows split over W ranks in order: ceil(K / W) rows to each and the rest to the last, as
    ``torch.chunk`` and DTensor's ``Shard(0)`` do."""

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
                f"a memory of {self.size} rows cannot be spread over {self.ranks} ranks with "
                f"{self._each} rows each: the last rank would have none; make the memory (nce_k) "
                f"larger"
            )

    def check_ranks(self, ranks: Ranks) -> None:
        """Checks that the process group is the one that the rows were split for.

        Raises:
            RuntimeError: it differs: made after the memory, or the memory is another rank's copy.
        """
        if ranks.gather == "shard" and (self.rank, self.ranks) != (ranks.rank, ranks.count):
            raise RuntimeError(
                f"this memory has the rows of rank {self.rank} of {self.ranks}, but this is rank "
                f"{ranks.rank} of {ranks.count}: construct the criterion on every rank, after "
                f"init_process_group (in Lightning: in configure_model), and use it before "
                f"destroy_process_group"
            )

    def part_of(self, rows: Tensor) -> Tensor:
        """This rank's part of all K ``rows``."""
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

    Every rank draws all K rows, a part at a time, and keeps its own. From the same seed, on a CPU,
    a single process draws the same rows and leaves the generator in the same state.

    Args:
        shard: the rows to keep.
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
        if (shard.size - at - count) * dim < 16:  # PyTorch draws so few in another way
            count = shard.size - at
        some = torch.randn(count, dim, device=device, dtype=dtype)
        squares += some.double().square().sum(0)
        begin, end = max(at, shard.first), min(at + len(some), shard.first + shard.rows)
        if begin < end:
            kept[begin - shard.first : end - shard.first] = some[begin - at : end - at]
        at += count
    norms = squares.sqrt().clamp_min(1e-12)
    for part in kept.split(ROWS_AT_ONCE):  # in place: a copy may not fit
        part.copy_(F.normalize(part, dim=1) if start == "unit" else part.double() / norms)
    return kept
