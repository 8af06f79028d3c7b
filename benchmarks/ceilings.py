"""What bounds a step, from what the machine reached in the same run, and the share of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import AnyCase
from benchmarks.work import Work, of_step

COMPUTE, BANDWIDTH = "compute", "bandwidth"


@dataclass(frozen=True)
class Ceilings:
    """The rates of a large torch.mm and of a large copy."""

    #: Operations per second, by format.
    mm_rate: Mapping[str, float]
    #: Bytes per second, read plus written; ``None`` where it was not measured.
    copy_rate: float | None

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Ceilings":
        """The best of what was measured before and after the cases."""
        looks = [look for look in record["machine"].values() if look]
        formats = {name for look in looks for name in look["mm_gflops"]}
        copies = [look[key] for look in looks if (key := "copy_gbytes_per_second") in look]
        return cls(
            {name: 1e9 * max(look["mm_gflops"][name] for look in looks) for name in formats},
            1e9 * max(copies) if copies else None,
        )

    def bound(self, case: AnyCase, work: Work | None = None) -> "Bound | None":
        """Of ``work`` in the case's format, or of the case's step; ``None`` where neither ceiling
        was measured."""
        work = work or of_step(case)
        times = {}
        if work.operations and (rate := self.mm_rate.get(case.format or "")):
            times[COMPUTE] = work.operations / rate
        if self.copy_rate:
            times[BANDWIDTH] = work.bytes / self.copy_rate
        if not times:
            return None
        by = max(times, key=lambda name: times[name])
        return Bound(by, times[by])


@dataclass(frozen=True)
class Bound:
    """The time below which a step could not go at these rates, with nothing in cache.

    A share over 1 is possible: a memory that stays in cache is read faster than a copy, and
    torch.mm is not the fastest product that a machine can do.
    """

    #: ``"compute"`` or ``"bandwidth"``.
    by: str
    seconds: float

    def share(self, seconds: float) -> float:
        """Of the ceiling, that a step of so many seconds reaches."""
        return self.seconds / seconds
