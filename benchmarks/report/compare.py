"""What moved between two records of one kind of device.

A time has moved when the intervals from its 20th to its 80th percentile in the two records have no
point in common, and there were seven rounds in both; memory when it differs by more than 2 MiB, the
size of the pages that a CPU's memory may be counted in. What one of the records has not tried is
left out, and operators.

Exit code: 0 when nothing of rrd_kernels got slower or takes more memory; 1 when something does, or
fails now, or when AFTER was cut off; 2 on bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.implementations.fifo import Fused
from benchmarks.measuring.breakdown import OPERATOR
from benchmarks.measuring.clocks import ROUNDS
from benchmarks.measuring.memory import NOT_MEASURED
from benchmarks.report.record import Record, load
from benchmarks.report.tables import duration, frame, markdown, print_markdown, source_text, texts

MEMORY_PAGE = 2 << 20
#: What a figure is of.
KEYS = ["case", "figure", "axis", "implementation", "name"]


def moves(before: Record, after: Record) -> pd.DataFrame:
    """What both records have tried and at least one has a figure of, with ``verdict`` (missing
    within the spread), ``extra`` (bytes by which memory moved) and ``worse``."""
    old, new = (
        rows[(rows.figure != OPERATOR) & (rows.outcome != NOT_MEASURED)]
        for rows in map(frame, (before, after))
    )
    both = old.merge(new, on=KEYS, suffixes=("", " after"))
    both = both.dropna(subset=["median", "median after"], how="all")
    enough = ~(both[["rounds", "rounds after"]] < ROUNDS).any(axis=1)
    both["verdict"] = None
    both.loc[enough & (both["p20 after"] > both.p80), "verdict"] = "slower"
    both.loc[enough & (both["p80 after"] < both.p20), "verdict"] = "faster"
    both.loc[both["median after"].isna(), "verdict"] = "fails now"
    both.loc[both["median"].isna(), "verdict"] = "works now"
    moved = both["extra_bytes after"] - both.extra_bytes
    both["extra"] = moved.where(moved.abs() > MEMORY_PAGE)
    worse = both.verdict.isin(("slower", "fails now")) | (both.extra > 0)
    both["worse"] = worse & (both.implementation == Fused.name)
    return both


def moves_table(found: pd.DataFrame) -> pd.DataFrame:
    times, after = found["median"], found["median after"]
    columns = {
        "before": texts(times, duration).fillna(found.outcome),
        "after": texts(after, duration).fillna(found["outcome after"]),
        "after / before": texts(after / times, "{:.2f}".format),
        "verdict": found.verdict,
        "extra MiB": texts(found.extra / 2**20, "{:+.1f}".format),
    }
    return found[KEYS].assign(**columns)


def device(record: Record) -> list[object]:
    """What must be alike for times to be compared."""
    gpu = record.get("gpu", {}).get("name")
    return [gpu, *(record.get(name) for name in ("cpu", "threads", "kernels"))]


def main(arguments: Sequence[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    prog = "python -m benchmarks.report.compare"
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=form)
    for name in ("before", "after"):
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}.json")
    chosen = parser.parse_args(arguments)
    try:
        before, after = load(chosen.before), load(chosen.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if device(before) != device(after):
        parser.error(f"different devices: {device(before)} and {device(after)}")
    found = moves(before, after)
    if found.empty:
        parser.error("the records have no figure in common")
    moved = found[found.verdict.notna() | found.extra.notna()]
    print(source_text(before), source_text(after), sep="")
    if len(moved):
        print_markdown(markdown(moves_table(moved)))
    print(
        f"{len(found)} figures, {len(found) - len(moved)} within the spread; of {Fused.name} "
        f"{found.worse.sum() or 'none'} slower, larger or failing"
    )
    cut_off = [*after.get("failures", [])]
    if after["machine"].get("after", {}) is None:
        cut_off.append("it did not look at the machine again, as a run does at its end")
    for reason in cut_off:
        print(f"AFTER was cut off: {reason}")
    return 1 if found.worse.any() or cut_off else 0


if __name__ == "__main__":
    sys.exit(main())
