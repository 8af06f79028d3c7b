"""Scaling, the host's time and breakdowns of a record as Markdown tables."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks import host_time, scaling
from benchmarks.cases import Case, from_fields
from benchmarks.ceilings import Ceilings
from benchmarks.figures import (
    CUDA_UNITS,
    MISSING,
    Line,
    Units,
    percent,
    share_of_ceiling,
    spread_text,
    table,
    three_digits,
    units_of,
)
from benchmarks.fits import PowerLaw

SCALING = """\
Exponents are fitted by least squares to the logarithms; ± is by how much a size lies off the fit.
Two implementations are left out for the time that they would take: `torch.compile`, which compiles
anew for each size, and SDPA's math kernel, whose matrices are those of the published code.
"""

#: Of a breakdown, the parts that are listed.
LISTED_PARTS = 6
OF_CEILING = "of its ceiling"


def scaling_table(record: Mapping[str, Any]) -> str:
    """A line for each implementation along each axis."""
    units, ceilings = units_of(record), Ceilings.of_record(record)
    every = [scaling.from_record(one) for one in record["scaling"]]
    return table([_series_line(series, units, ceilings) for series in every])


def _series_line(series: scaling.Series, units: Units, ceilings: Ceilings) -> Line:
    axis, figures = series.axis, [point for point in series.points if point.seconds]
    letter, other = ("K", "B") if axis.name == "rows" else ("B", "K")
    fixed = axis.case.batch if axis.name == "rows" else axis.case.rows
    line = {
        "what grows": f"{letter} from {axis.values[0]}, {other} = {fixed}",
        "implementation": series.implementation,
        "time grows as": growth(letter, series.time),
        "extra memory grows as": growth(letter, series.memory),
        "largest that ran": "none",
        f"there, {units.time}": MISSING,
        "rounds there": MISSING,
        "there, of its ceiling": MISSING,
        "there, extra MiB": MISSING,
    }
    if figures:
        last = figures[-1]
        assert last.seconds is not None
        median, size = last.seconds.median, last.extra_bytes
        case = axis.cases[axis.values.index(last.value)]
        line |= {
            "largest that ran": f"{letter} = {last.value}",
            f"there, {units.time}": three_digits(units.per_second * median),
            "rounds there": str(last.rounds),
            "there, of its ceiling": share_of_ceiling(ceilings.bound(case), median),
            "there, extra MiB": MISSING if size is None else three_digits(size / 2**20),
        }
    if end := series.points[-1].outcome:
        line["largest that ran"] += f", {end} at {series.points[-1].value}"
    return line


def points_table(record: Mapping[str, Any]) -> str:
    """A line for each size along each axis, all implementations beside one another."""
    units, ceilings = units_of(record), Ceilings.of_record(record)
    series = [scaling.from_record(one) for one in record["scaling"]]
    names = list(dict.fromkeys(one.implementation for one in series))
    lines: dict[Case, dict[str, str]] = {}
    for one in series:
        for case, point in zip(one.axis.cases, one.points, strict=False):
            line = lines.setdefault(case, {"size": case.name} | dict.fromkeys(names, MISSING))
            line[one.implementation] = _point_text(case, point, units, ceilings)
    titles = {name: f"{name}, {units.time} [p20–p80] (share; rounds; extra MiB)" for name in names}
    return table(
        [{titles.get(key, key): text for key, text in line.items()} for line in lines.values()]
    )


def _point_text(case: Case, point: scaling.Point, units: Units, ceilings: Ceilings) -> str:
    if point.seconds is None:
        return point.outcome or MISSING
    size = point.extra_bytes
    memory = MISSING if size is None else three_digits(size / 2**20)
    bound = ceilings.bound(case)
    share = MISSING if bound is None else percent(bound.share(point.seconds.median))
    return f"{spread_text(asdict(point.seconds), units)} ({share}; {point.rounds}; {memory})"


def growth(letter: str, fit: PowerLaw | None) -> str:
    """Such as "K^1.02 (±4 %)"."""
    if fit is None:
        return MISSING
    return f"{letter}^{fit.exponent:.2f} (±{fit.off_by - 1:.0%})"


def host_table(record: Mapping[str, Any]) -> str:
    """The layers of one step, the whole of it last."""
    profile = record["host_time"]
    whole = profile["step"]["median"]
    case = Case(profile["batch"], profile["rows"], "float32", host_time.DIM)
    bound = Ceilings.of_record(record).bound(case)
    name = f"{profile['batch']}×{profile['rows']}, D = {host_time.DIM}"
    lines = [
        {
            name: layer["name"],
            "µs [p20–p80]": spread_text(layer["seconds"], CUDA_UNITS),
            "of the step": f"{layer['seconds']['median'] / whole:.1%}",
            OF_CEILING: share_of_ceiling(bound, layer["seconds"]["median"])
            if layer["name"].startswith(host_time.KERNELS)
            else MISSING,
        }
        for layer in profile["layers"]
    ]
    if profile["launches"] is not None:
        driver = profile["launch_seconds"]
        lines.append(
            {
                name: f"of the operator, {profile['launches']} launches in the driver (profiled)",
                "µs [p20–p80]": three_digits(1e6 * driver),
                "of the step": f"{driver / whole:.1%}",
                OF_CEILING: MISSING,
            }
        )
    # A GPU's kernels run beside the host.
    beside = 0 if "gpu" not in record else 1
    rest = whole - sum(layer["seconds"]["median"] for layer in profile["layers"][beside:])
    lines.append(
        {
            name: "in none of these",
            "µs [p20–p80]": three_digits(1e6 * rest),
            "of the step": f"{rest / whole:.1%}",
            OF_CEILING: MISSING,
        }
    )
    last = {"µs [p20–p80]": spread_text(profile["step"], CUDA_UNITS), "of the step": "100%"}
    last[OF_CEILING] = share_of_ceiling(bound, whole)
    return table([*lines, {name: "the whole step, measured for itself", **last}])


def breakdown_title(record: Mapping[str, Any], breakdown: Mapping[str, Any]) -> str:
    """What it is of, and the share of its ceiling that the sum of its parts reaches."""
    case = from_fields(breakdown["case"])
    title = f"{case.name}, {breakdown['implementation']}"
    if not breakdown["parts"]:
        return title
    whole = sum(part["seconds"] for part in breakdown["parts"])
    share = share_of_ceiling(Ceilings.of_record(record).bound(case), whole)
    return f"{title}: {three_digits(1e6 * whole)} µs, of its ceiling {share}"


def breakdown_table(breakdown: Mapping[str, Any]) -> str:
    """The longest parts of one implementation's step, the others together."""
    parts = breakdown["parts"]
    listed, others = parts[:LISTED_PARTS], parts[LISTED_PARTS:]
    whole = sum(part["seconds"] for part in parts)
    lines = [(f"`{short(part['name'])}`", part["calls"], part["seconds"]) for part in listed]
    if others:
        rest = [sum(part[key] for part in others) for key in ("calls", "seconds")]
        lines.append((f"{len(others)} others", *rest))
    return table(
        [
            {
                breakdown["implementation"]: name,
                "calls": f"{calls:g}",
                "µs": three_digits(1e6 * seconds),
                "share": f"{seconds / whole:.0%}",
            }
            for name, calls, seconds in lines
        ]
    )


def short(name: str) -> str:
    """An operator's or a kernel's name without its namespaces' and templates' depths."""
    name = name.removeprefix("autograd::engine::evaluate_function: ").strip("# ")
    name = re.sub(r"(CompiledFxGraph) (\w{4})\w+", r"\1 \2…", name)  # the start of its hash
    return name if len(name) <= 48 else name[:47] + "…"
