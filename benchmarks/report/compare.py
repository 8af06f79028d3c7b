"""Compares two records of one kind of device and prints the figures that moved.

A time has moved if the intervals from the 20th to the 80th percentile of the two records do not
overlap, with seven rounds or more in both. Memory has moved if it differs by more than 2 MiB, the
size of a page. Operators are left out, and figures that only one record has tried. Exit code: 1 if
something of rrd_kernels got slower, takes more memory or fails now, or if AFTER is incomplete.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.measuring.clocks import ROUNDS
from benchmarks.measuring.memory import NOT_MEASURED
from benchmarks.measuring.run import OPERATOR, OURS
from benchmarks.report.record import Record, load
from benchmarks.report.tables import duration, frame, markdown, print_markdown, source_text, texts

KEYS = ["case", "figure", "axis", "implementation", "name"]  # what a figure is of
DEVICE = ("cpu", "threads", "kernels")  # alike where times can be compared, and a GPU's name


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
    both["extra"] = moved.where(moved.abs() > (2 << 20))  # a page
    worse = both.verdict.isin(("slower", "fails now")) | (both.extra > 0)
    both["worse"] = worse & (both.implementation == OURS)
    return both


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.report.compare", description=__doc__)
    for name, age in (("before", "older"), ("after", "newer")):
        text = f"{age} record, a JSON file of make bench or make gpu-check"
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}.json", help=text)
    chosen = parser.parse_args(arguments)
    try:
        before, after = load(chosen.before), load(chosen.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    old, new = ([r.get("gpu", {}).get("name"), *map(r.get, DEVICE)] for r in (before, after))
    if old != new:
        parser.error(f"BEFORE and AFTER are of different devices: {old} and {new}")
    found = moves(before, after)
    if found.empty:
        parser.error("BEFORE and AFTER have no figure in common")
    moved = found[found.verdict.notna() | found.extra.notna()]
    print(source_text(before), source_text(after), sep="")
    if len(moved):
        columns = {
            "before": texts(moved["median"], duration).fillna(moved.outcome),
            "after": texts(moved["median after"], duration).fillna(moved["outcome after"]),
            "after / before": texts(moved["median after"] / moved["median"], "{:.2f}".format),
            "verdict": moved.verdict,
            "extra MiB": texts(moved.extra / 2**20, "{:+.1f}".format),
        }
        print_markdown(markdown(moved[KEYS].assign(**columns)))
    still, worse = len(found) - len(moved), found.worse.sum() or "none"
    print(f"{len(found)} figures compared, {still} of them within the spread")
    print(f"slower, larger or failing in {OURS}: {worse}")
    cut_off = [*after.get("failures", [])]
    if after["machine"].get("after", {}) is None:
        cut_off.append("the run did not reach its end, where it measures the machine again")
    for reason in cut_off:
        print(f"AFTER is incomplete: {reason}")
    return 1 if found.worse.any() or cut_off else 0


if __name__ == "__main__":
    sys.exit(main())
