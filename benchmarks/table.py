"""The figures as tables on the terminal."""

import itertools
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.ceilings import Ceilings
from benchmarks.figures import (
    CPU_UNITS,
    MISSING,
    PUBLISHED,
    Units,
    best_sdpa,
    share_of_ceiling,
    spread_text,
    three_digits,
)
from benchmarks.peers import Compiled
from benchmarks.run import Absent, Result, Row
from benchmarks.targets import Outcome

#: Columns at least, so that no figure is cut off: a narrow terminal wraps lines instead.
WIDTH = 160

TITLES = ("case", "implementation")


def print_table(
    results: Sequence[Result],
    units: Units = CPU_UNITS,
    ceilings: Ceilings | None = None,
    title: str | None = None,
) -> None:
    """Prints ``results``, those of one case together; a figure that none of them has is left out.

    Args:
        results: of one run.
        units: of its times and rates.
        ceilings: of the machine, if they were measured.
        title: what is printed above, if anything.
    """
    lines = []
    for _, group in itertools.groupby(results, key=lambda result: result.case):
        of_case = list(group)
        rows = [row for row in of_case if isinstance(row, Row)]
        best = best_sdpa({row.implementation: row.seconds.median for row in rows})
        lines += [_figures(result, best, units, ceilings) for result in of_case]
    shown = [column for column in lines[0] if any(line[column] != MISSING for line in lines)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for column in TITLES:
        table.add_column(column, no_wrap=True)
    for column in shown:
        table.add_column(Text(column), justify="right", no_wrap=True)
    previous = None
    for result, line in zip(results, lines, strict=True):
        if previous and result.case != previous:
            table.add_section()
        name = "" if result.case == previous else result.case.name
        table.add_row(name, result.implementation, *(Text(line[column]) for column in shown))
        previous = result.case
    print_wide(table)
    for reason, where in _reasons(results).items():
        print(f"{reason}: {', '.join(where)}")


def _figures(
    result: Result, best: str | None, units: Units, ceilings: Ceilings | None
) -> dict[str, str]:
    """The cells by their titles; ``best`` is the fastest SDPA by the host's clock."""
    titles = (
        f"{units.time} [p20–p80]",
        f"{units.time} in a graph",
        units.rate,
        "of its ceiling",
        "× published",
        "× compile",
        "× SDPA",
        "extra MiB",
    )
    if isinstance(result, Absent):
        return dict.fromkeys(titles, MISSING) | {titles[0]: result.outcome}
    row = result
    published = next((name for name in PUBLISHED if name in row.speedup), None)
    bound = ceilings.bound(row.case) if ceilings else None
    cells = (
        spread_text(vars(row.seconds), units),
        spread_text(vars(row.replay.seconds), units) if row.replay else MISSING,
        MISSING if row.rate is None else f"{row.rate / units.operations:.0f}",
        share_of_ceiling(bound, row.best_seconds),
        *(_speedup(row, peer) for peer in (published, Compiled.name, best)),
        MISSING if row.extra_bytes is None else f"{row.extra_bytes / 2**20:.1f}",
    )
    return dict(zip(titles, cells, strict=True))


def _speedup(row: Row, peer: str | None) -> str:
    return MISSING if peer is None or peer not in row.speedup else f"{row.speedup[peer]:.2f}"


def _reasons(results: Sequence[Result]) -> dict[str, list[str]]:
    """Why figures are missing, and the cases in which they are."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        if isinstance(result, Absent):
            texts = [f"{result.outcome}, {result.reason}"]
        else:
            missing = {"in no graph": result.not_captured, "memory": result.no_memory}
            texts = [f"{what}, {why}" for what, why in missing.items() if why]
        for text in texts:
            of = f"{result.implementation} {text}"
            reasons.setdefault(of, []).append(result.case.name)
    return reasons


def print_targets(outcomes: Sequence[Outcome]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("case", "target", "measured", "met?"):
        table.add_column(title, no_wrap=True)
    for outcome in outcomes:
        limit, measured = (
            MISSING if value is None else _figure(value, outcome.figure)
            for value in (outcome.limit, outcome.measured)
        )
        met = MISSING if outcome.measured is None else "yes" if outcome.met else "no"
        table.add_row(outcome.case, f"{outcome.bound} {limit} {outcome.figure}", measured, met)
    print_wide(table)


def _figure(value: float, figure: str) -> str:
    return f"{value:.0%}" if figure.startswith("share") else three_digits(value)


def print_wide(table: Table) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(table)
