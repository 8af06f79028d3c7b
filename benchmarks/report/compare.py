"""What moved between two records: ``python -m benchmarks.report.compare BEFORE AFTER``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.implementations.fifo import Fused
from benchmarks.measuring.breakdown import OPERATOR
from benchmarks.measuring.clocks import ROUNDS
from benchmarks.measuring.host_time import HOST, WHOLE
from benchmarks.measuring.outcomes import NOT_MEASURED
from benchmarks.report.record import Record, load
from benchmarks.report.tables import frame, print_table, rates, spreads, texts, unit

RULE = """\
A time has moved when the intervals from its 20th to its 80th percentile in the two
records have no point in common, so that a time whose rounds lie apart by as much
as it moved has not. Sizes timed in fewer than seven rounds have no such interval:
of them it is told only whether they run. Memory has moved when it differs by more
than 2 MiB, the size of the pages that a CPU's memory may be counted in.

What one of the records has not tried is left out; of the host's time only the
whole step is compared, and no operators. Exit code: 0 when nothing of rrd_kernels
got slower or takes more memory; 1 when something does, or fails now, or when AFTER
was cut off; 2 on bad input. The peers are shown beside it: where they moved too,
so did the machine.
"""

MEMORY_PAGE = 2 << 20
#: What a figure is of.
KEYS = ["case", "figure", "axis", "implementation"]
SLOWER, FASTER, FAILS, WORKS = "slower", "faster", "fails now", "works now"


def moves(before: Record, after: Record) -> pd.DataFrame:
    """What both records have tried and at least one has a figure of, with ``verdict`` (missing
    within the spread), ``extra`` (bytes by which memory moved) and ``worse``."""
    old, new = _figures(before), _figures(after)
    both = old.merge(new, on=KEYS, suffixes=(" before", " after"))
    both = both[both["median before"].notna() | both["median after"].notna()].copy()
    enough = (both["rounds before"].fillna(ROUNDS) >= ROUNDS) & (
        both["rounds after"].fillna(ROUNDS) >= ROUNDS
    )
    both["verdict"] = None
    both.loc[enough & (both["p20 after"] > both["p80 before"]), "verdict"] = SLOWER
    both.loc[enough & (both["p80 after"] < both["p20 before"]), "verdict"] = FASTER
    both.loc[both["median after"].isna(), "verdict"] = FAILS
    both.loc[both["median before"].isna(), "verdict"] = WORKS
    moved = both["extra_bytes after"] - both["extra_bytes before"]
    both["extra"] = moved.where(moved.abs() > MEMORY_PAGE)
    worse = both.verdict.isin((SLOWER, FAILS)) | (both.extra > 0)
    both["worse"] = worse & (both.implementation == Fused.name)
    return both


def _figures(record: Record) -> pd.DataFrame:
    rows = frame(record)
    tried = (rows.figure != OPERATOR) & (rows.outcome != NOT_MEASURED)
    rows = rows[tried & ((rows.figure != HOST) | (rows.name == WHOLE))].copy()
    rows["axis"] = rows["axis"].fillna("")
    return rows[[*KEYS, "median", "p20", "p80", "rounds", "extra_bytes"]]


def moves_table(found: pd.DataFrame, record: Record) -> pd.DataFrame:
    name, scale = unit(record)
    figure = found.figure.where(found.figure != "growth", "growth with " + found["axis"])
    table = pd.DataFrame({"what": found.case + ", " + figure, "of": found.implementation})
    for side in ("before", "after"):
        some = found.rename(columns=lambda name, side=side: name.removesuffix(f" {side}"))
        table[f"{side}, {name}"] = spreads(some.assign(outcome=None), scale)
    ratio = found["median after"] / found["median before"]
    table["after / before"] = texts(ratio, "{:.2f}".format)
    table["verdict"] = found.verdict.fillna("within the spread")
    table["extra MiB"] = texts(found.extra / 2**20, "{:+.1f}".format)
    return table


def machines_table(*records: Record) -> pd.DataFrame:
    """How the machine itself moved; of formats that both have."""
    looks = []
    for record in records:
        mm, copied = rates(record)
        speeds = {f"torch.mm in {name}, GFLOP/s": rate / 1e9 for name, rate in mm.items()}
        looks.append(pd.Series(speeds | {"copy, GB/s": copied / 1e9}, dtype=float))
    table = pd.concat(looks, axis=1, keys=["before", "after"]).dropna()
    table["after / before"] = (table.after / table.before).map("{:.2f}".format)
    return table.round(0).rename_axis("ceiling").reset_index()


def cut_off(record: Record) -> list[str]:
    """What a run did not come to, as far as its record says."""
    found = list(record.get("failures", []))
    if record["machine"].get("after", {}) is None:
        found.append("it did not look at the machine again, as a run does at its end")
    return found


def device(record: Record) -> list[object]:
    """What must be alike for times to be compared."""
    if "gpu" in record:
        return [record["gpu"].get("name")]
    return [record.get(name) for name in ("cpu", "threads", "kernels")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.compare",
        description="What moved between two records.",
        epilog=RULE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="BEFORE.json")
    parser.add_argument("after", type=Path, metavar="AFTER.json")
    parser.add_argument("--all", action="store_true", help="also what stayed within the spread")
    parser.add_argument(
        "--across-devices", action="store_true", help="even if they are of different devices"
    )
    chosen = parser.parse_args(arguments)
    try:
        before, after = load(chosen.before), load(chosen.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if device(before) != device(after) and not chosen.across_devices:
        parser.error(
            f"the records are of different devices, {device(before)} and {device(after)}; "
            "--across-devices compares them"
        )
    found = moves(before, after)
    if found.empty:
        parser.error("the records have no figure in common")
    print_table(machines_table(before, after))
    moved = found[found.verdict.notna() | found.extra.notna()]
    shown = found if chosen.all else moved
    if len(shown):
        print_table(moves_table(shown, after))
    print(
        f"{len(found)} figures, {len(found) - len(moved)} within the spread; of {Fused.name} "
        f"{found.worse.sum() or 'none'} slower, larger or failing"
    )
    for reason in (reasons := cut_off(after)):
        print(f"AFTER was cut off: {reason}")
    return 1 if found.worse.any() or reasons else 0


if __name__ == "__main__":
    sys.exit(main())
