"""Which rank holds which of a memory's K rows."""

from typing import NamedTuple

from torch import Tensor

from rrd_kernels.distributed.ranks import Ranks


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
                f"{self._each} rows each: the last rank would have none; make the memory larger"
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
