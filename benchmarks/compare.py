"""What moved between two records: ``python -m benchmarks.compare BEFORE.json AFTER.json``."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.cases import from_fields
from benchmarks.ceilings import Ceilings
from benchmarks.figures import MISSING, Units, spread_text, table, units_of
from benchmarks.measure import NOT_MEASURED, Spread
from benchmarks.peers import Fused
from benchmarks.sdpa import CpuFlash

RULE = """\
A time has moved when the intervals from its 20th to its 80th percentile in the two
records have no point in common, so that a time whose rounds lie apart by as much
as it moved has not. Sizes timed in fewer than seven rounds have no such interval:
of them it is told only whether they run. Memory has moved when it differs by more
than 2 MiB, the size of the pages that a CPU's memory may be counted in.

What one of the records has not tried is left out, and so are the parts of a profile: of
the host's time only the whole step is compared, and no breakdown. Exit code: 0 when nothing of
rrd_kernels got slower or takes more memory; 1 when something does, or fails now, or when AFTER
was cut off; 2 on bad input. The peers are shown beside it: where they moved too, so did the
machine.
"""

OTHER_TURNS = """\
Of the two records one is older, and has its memories in cache where they fit it: the other let
copies of them take turns.
"""

#: Below, percentiles are no measure of the spread: with five rounds they are the second and fourth.
LEAST_ROUNDS = 7
MEMORY_PAGE = 2 << 20

#: What older records call an implementation.
RENAMED = {"SDPA": CpuFlash.name}

SLOWER, FASTER, SAME = "slower", "faster", "within the spread"
FAILS, WORKS = "fails now", "works now"


@dataclass(frozen=True)
class Figure:
    """One time of a record; of too few rounds it says only that there is one."""

    seconds: Spread
    extra_bytes: int | None = None
    rounds: int = LEAST_ROUNDS


@dataclass(frozen=True)
class Name:
    """What a figure is of."""

    what: str
    implementation: str

    @classmethod
    def of(cls, what: str, implementation: str) -> "Name":
        """With the implementation's name as it is now."""
        return cls(what, RENAMED.get(implementation, implementation))


@dataclass(frozen=True)
class Move:
    """A figure in both records; ``None`` in the one in which it failed."""

    name: Name
    before: Figure | None
    after: Figure | None

    @property
    def verdict(self) -> str:
        if self.before is None:
            return WORKS
        if self.after is None:
            return FAILS
        if min(self.before.rounds, self.after.rounds) < LEAST_ROUNDS:
            return SAME
        if self.after.seconds.p20 > self.before.seconds.p80:
            return SLOWER
        return FASTER if self.after.seconds.p80 < self.before.seconds.p20 else SAME

    @property
    def is_regression(self) -> bool:
        worse = self.verdict in (SLOWER, FAILS) or (self.extra_bytes or 0) > 0
        return self.name.implementation == Fused.name and worse

    @property
    def extra_bytes(self) -> int | None:
        """By how much memory moved, if it did."""
        sizes = [figure.extra_bytes if figure else None for figure in (self.before, self.after)]
        before, after = sizes
        if before is None or after is None or abs(after - before) <= MEMORY_PAGE:
            return None
        return after - before


def figures(measured: Mapping[str, Any]) -> dict[Name, Figure | None]:
    """All times of a record; ``None`` where an implementation has failed."""
    return dict(_figures(measured))


def _figures(measured: Mapping[str, Any]) -> Iterator[tuple[Name, Figure | None]]:
    for row in measured["rows"]:
        case, kind = from_fields(row["case"]).name, row["implementation"]
        if row.get("outcome") == NOT_MEASURED:
            continue
        if "seconds" not in row:
            yield Name.of(case, kind), None
            continue
        spread = Spread(**row["seconds"])
        yield Name.of(case, kind), Figure(spread, row["extra_bytes"], row["rounds"])
        for part, timing in row.get("parts", {}).items():
            seconds = Spread(**timing["seconds"])
            yield Name.of(f"{case}, {part}", kind), Figure(seconds, None, timing["rounds"])
        if row.get("replay"):
            yield Name.of(f"{case}, in a graph", kind), Figure(Spread(**row["replay"]["seconds"]))
    if profile := measured.get("host_time"):
        size = f"{profile['batch']}×{profile['rows']}"
        yield (
            Name.of(f"a step of RRDLoss, {size}", Fused.name),
            Figure(Spread(**profile["step"])),
        )
    for series in measured.get("scaling", []):
        axis = series["axis"]
        for point in series["points"]:
            fields = {**axis["case"], axis["name"]: point["value"]}
            what = f"{from_fields(fields).name}, scaling of {axis['name']}"
            name = Name.of(what, series["implementation"])
            if point["outcome"] == NOT_MEASURED:
                continue
            if point["outcome"]:
                yield name, None
            else:
                spread = Spread(**point["seconds"])
                yield name, Figure(spread, point["extra_bytes"], point["rounds"])


def moves(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Move]:
    """Of what both records have tried, and at least one has a figure of."""
    old, new = figures(before), figures(after)
    both = [Move(name, old[name], new[name]) for name in old if name in new]
    return [move for move in both if move.before or move.after]


def cut_off(measured: Mapping[str, Any]) -> list[str]:
    """What a run did not come to, as far as its record says."""
    found = list(measured.get("failures", []))
    if measured["machine"].get("after", {}) is None:
        found.append("it did not look at the machine again, as a run does at its end")
    return found


def device(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What must be alike for times to be compared."""
    if "gpu" in measured:
        return {"gpu": measured["gpu"].get("name")}
    return {name: measured.get(name) for name in ("cpu", "threads", "kernels")}


def as_table(found: Sequence[Move], units: Units) -> str:
    return table([_line(move, units) for move in found])


def _line(move: Move, units: Units) -> dict[str, str]:
    sides = {"before": move.before, "after": move.after}
    figures = {
        f"{side}, {units.time}": spread_text(vars(figure.seconds), units) if figure else MISSING
        for side, figure in sides.items()
    }
    ratio = MISSING
    if move.before and move.after:
        ratio = f"{move.after.seconds.median / move.before.seconds.median:.2f}"
    memory = move.extra_bytes
    return {
        "what": move.name.what,
        "of": move.name.implementation,
        **figures,
        "after / before": ratio,
        "verdict": move.verdict,
        "extra MiB": MISSING if memory is None else f"{memory / 2**20:+.1f}",
    }


def ceilings_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """How the machine itself moved; of formats that both have."""
    sides = [Ceilings.of_record(measured) for measured in (before, after)]
    rates = [
        {f"torch.mm in {name}, GFLOP/s": rate / 1e9 for name, rate in side.mm_rate.items()}
        | ({"copy, GB/s": side.copy_rate / 1e9} if side.copy_rate else {})
        for side in sides
    ]
    old, new = rates
    lines = [
        {
            "ceiling": name,
            "before": f"{old[name]:.0f}",
            "after": f"{new[name]:.0f}",
            "after / before": f"{new[name] / old[name]:.2f}",
        }
        for name in sorted(old.keys() & new.keys())
    ]
    return table(lines) if lines else ""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
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
    for side in ("before", "after"):
        try:
            setattr(chosen, side, record.load(getattr(chosen, side)))
        except (OSError, ValueError) as error:
            parser.error(str(error))
    if device(chosen.before) != device(chosen.after) and not chosen.across_devices:
        parser.error(
            f"the records are of different devices, {device(chosen.before)} and "
            f"{device(chosen.after)}; --across-devices compares them"
        )
    if not moves(chosen.before, chosen.after):
        parser.error("the records have no figure in common")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    found = moves(chosen.before, chosen.after)
    moved = [move for move in found if move.verdict != SAME or move.extra_bytes is not None]
    if rates := ceilings_table(chosen.before, chosen.after):
        print(rates)
    if ("cache_bytes" in chosen.before) != ("cache_bytes" in chosen.after):
        print(OTHER_TURNS)
    if shown := found if chosen.all else moved:
        print(as_table(shown, units_of(chosen.after)))
    regressions = sum(move.is_regression for move in found)
    print(
        f"{len(found)} figures, {len(found) - len(moved)} within the spread; of {Fused.name} "
        f"{regressions or 'none'} slower, larger or failing"
    )
    for reason in (reasons := cut_off(chosen.after)):
        print(f"AFTER was cut off: {reason}")
    return 1 if regressions or reasons else 0


if __name__ == "__main__":
    sys.exit(main())
