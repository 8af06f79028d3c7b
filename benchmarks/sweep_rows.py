"""What a sweep has found: its file, and its table."""

import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from benchmarks.cases import Case
from benchmarks.errors import Errors
from benchmarks.figures import CUDA_UNITS, MISSING, percent, spread_text
from benchmarks.measure import NOT_MEASURED, Spread
from benchmarks.paths import write_whole
from benchmarks.resources import Resources
from benchmarks.table import print_wide
from benchmarks.variants import Variant

#: How many times faster than the table's way is worth a change.
GAIN = 1.05
MARK = "◀"

TITLES = (
    *("size", "variant", "error", "µs [p20–p80]", "of torch.mm", "× table"),
    *("registers", "spilled", "shared KiB", "programs"),
)


@dataclass(frozen=True)
class Row:
    """One variant on one size."""

    case: Case
    variant: Variant
    errors: Errors | None = None
    #: Of the second kernel.
    resources: Resources | None = None
    seconds: Spread | None = None
    rounds: int = 0
    #: How many times faster than the table's way: the median over the rounds.
    gain: float | None = None
    #: A few words on why there is no time, and the reason.
    outcome: str | None = None
    reason: str | None = None

    @property
    def failed(self) -> bool:
        return self.outcome not in (None, NOT_MEASURED)

    @property
    def worth_it(self) -> bool:
        return self.gain is not None and self.gain >= GAIN

    def share_of_mm(self, rates: Mapping[str, float]) -> float | None:
        if self.seconds is None or self.case.operations is None:
            return None
        return self.case.operations / self.seconds.median / rates[self.case.format]

    def as_record(self, rates: Mapping[str, float]) -> dict[str, Any]:
        plan = self.variant.plan
        variant = {
            "name": self.variant.name,
            "plan": plan._asdict() | {"config": plan.config._asdict()},
            "constants": dict(self.variant.constants),
        }
        figures = {"share_of_mm": self.share_of_mm(rates), "worth_it": self.worth_it}
        return {**asdict(self), "variant": variant, **figures}


@dataclass
class Sweep:
    """What has been measured so far, and its file."""

    path: Path
    environment: Mapping[str, Any]
    started: float  # on time.monotonic()
    #: Operations per second of torch.mm, by format.
    mm_rate: dict[str, float] = field(default_factory=dict)
    rows: dict[tuple[Case, Variant], Row] = field(default_factory=dict)
    #: Of whole sizes.
    failures: list[str] = field(default_factory=list)

    def put(self, row: Row) -> None:
        """In place of what there was of it; the file is written."""
        self.rows[row.case, row.variant] = row
        self.save()

    def save(self) -> None:
        written = {
            **self.environment,
            "took": time.monotonic() - self.started,  # seconds
            "mm_gflops": {name: rate / 1e9 for name, rate in self.mm_rate.items()},
            "rows": [row.as_record(self.mm_rate) for row in self.rows.values()],
            "failures": self.failures,
        }
        write_whole(self.path, written)

    @property
    def failed(self) -> bool:
        return bool(self.failures) or any(row.failed for row in self.rows.values())


def print_sweep(sweep: Sweep) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in TITLES:
        justify: Any = "left" if title in TITLES[:2] else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    previous = None
    for row in sweep.rows.values():
        if previous and row.case != previous:
            table.add_section()
        name = "" if row.case == previous else row.case.name
        table.add_row(name, row.variant.name, *map(Text, _figures(row, sweep.mm_rate)))
        previous = row.case
    print_wide(table)
    for row in sweep.rows.values():
        if row.outcome is not None:
            print(f"{row.case.name}, {row.variant.name}: {row.outcome}, {row.reason}")
    for failure in sweep.failures:
        print(failure)


def _figures(row: Row, rates: Mapping[str, float]) -> list[str]:
    share, error = row.share_of_mm(rates), row.errors and row.errors.gradient
    needed = [MISSING] * 4
    if row.resources is not None:
        registers, local, shared, programs = astuple(row.resources)
        needed = [str(registers), str(local), f"{shared / 1024:.0f}", str(programs)]
    time = spread_text(vars(row.seconds), CUDA_UNITS) if row.seconds else row.outcome or MISSING
    return [
        MISSING if error is None else f"{error:.1e}",
        time,
        MISSING if share is None else percent(share),
        MISSING if row.gain is None else f"{row.gain:.2f} {MARK if row.worth_it else ' '}",
        *needed,
    ]
