"""Figures as text, and Markdown tables of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.ceilings import Bound
from benchmarks.negatives import PublishedLoader
from benchmarks.peers import PublishedEager

#: What a case's published code is called.
PUBLISHED = (PublishedEager.name, PublishedLoader.name)
MISSING = "–"
#: Of a table: cells by their titles, the first of which is the line's name.
Line = Mapping[str, str]


class Units(NamedTuple):
    """Of times and rates."""

    per_second: float
    time: str
    operations: float
    rate: str


CPU_UNITS = Units(1e3, "ms", 1e9, "GFLOP/s")
CUDA_UNITS = Units(1e6, "µs", 1e12, "TFLOP/s")


def three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def best_sdpa(seconds: Mapping[str, float]) -> str | None:
    """The fastest of PyTorch's attention kernels, given times by implementation, all of one clock:
    the fastest in a graph may be another than that by the host's clock."""
    kernels = {name: taken for name, taken in seconds.items() if name.startswith("SDPA")}
    return min(kernels, key=lambda name: kernels[name]) if kernels else None


def memory_text(row: Mapping[str, Any]) -> str:
    """MiB of a record's row or point, or why there are none."""
    if (size := row.get("extra_bytes")) is not None:
        return f"{size / 2**20:.1f}"
    return (row.get("no_memory") or MISSING).partition(":")[0]


def percent(share: float) -> str:
    """With a decimal below one in a hundred."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def share_text(bound: Bound | None, seconds: float, *more: str) -> str:
    """To stand behind a time, such as " (81%)"; with ``more`` in the same brackets."""
    found = [] if bound is None else [percent(bound.share(seconds))]
    inside = ", ".join([*found, *(text for text in more if text)])
    return f" ({inside})" if inside else ""


def share_of_ceiling(bound: Bound | None, seconds: float) -> str:
    """Such as "81% (compute)"."""
    return MISSING if bound is None else f"{percent(bound.share(seconds))} ({bound.by})"


def table(lines: Sequence[Line]) -> str:
    """A Markdown table, the first column left, the others right; without those that no line has."""
    name, *titles = lines[0]
    shown = [title for title in titles if any(line[title] != MISSING for line in lines)]
    rows = [[name, *shown], ["---", *["--:"] * len(shown)]]
    rows += [[line[title] for title in (name, *shown)] for line in lines]
    head, rule, *rest = ("| " + " | ".join(cells) + " |" for cells in rows)
    return "\n".join([head, rule.replace(" ", ""), *rest]) + "\n"


def units_of(record: Mapping[str, Any]) -> Units:
    return CUDA_UNITS if "gpu" in record else CPU_UNITS


def spread_text(seconds: Mapping[str, float], units: Units, spread: bool = True) -> str:
    """The median, and the percentiles if ``spread``, without the unit."""
    median, p20, p80 = (
        three_digits(units.per_second * seconds[name]) for name in ("median", "p20", "p80")
    )
    return f"{median} [{p20}–{p80}]" if spread else median
