"""The figures as a table."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.peers import SDPA, PublishedEager
from benchmarks.run import Row

#: Columns at least, so that no figure is cut off: a narrow terminal wraps lines instead.
WIDTH = 112

TITLES = ("case", "implementation")
FIGURES = ("ms [p20–p80]", "GFLOP/s", "% of mm", "× eager", "× SDPA", "extra MiB")
MISSING = "–"


def print_table(rows: Sequence[Row], ceilings: Mapping[str, float] | None = None) -> None:
    """Prints ``rows``, those of one case together; a figure that none of them has is left out.

    Args:
        rows: of one run.
        ceilings: the rate of torch.mm by dtype name, if it was measured.
    """
    figures = [_figures(row, ceilings or {}) for row in rows]
    shown = [i for i in range(len(FIGURES)) if any(line[i] != MISSING for line in figures)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in TITLES:
        table.add_column(title, no_wrap=True)
    for i in shown:
        table.add_column(Text(FIGURES[i]), justify="right", no_wrap=True)
    previous = None
    for row, line in zip(rows, figures, strict=True):
        if previous and row.case != previous:
            table.add_section()
        name = "" if row.case == previous else row.case.name
        table.add_row(name, row.implementation, *(Text(line[i]) for i in shown))
        previous = row.case
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(table)


def _figures(row: Row, ceilings: Mapping[str, float]) -> list[str]:
    """One cell for each of ``FIGURES``."""
    median, p20, p80 = (
        three_digits(1e3 * s) for s in (row.seconds.median, row.seconds.p20, row.seconds.p80)
    )
    ceiling = ceilings.get(row.case.dtype_name)
    return [
        f"{median} [{p20}–{p80}]",
        f"{row.rate / 1e9:.0f}",
        MISSING if ceiling is None else f"{row.rate / ceiling:.0%}",
        *(_speedup(row, peer.name) for peer in (PublishedEager, SDPA)),
        MISSING if row.extra_bytes is None else f"{row.extra_bytes / 2**20:.1f}",
    ]


def _speedup(row: Row, peer: str) -> str:
    return f"{row.speedup[peer]:.2f}" if peer in row.speedup else MISSING


def three_digits(value: float) -> str:
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"
