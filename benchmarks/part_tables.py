"""Scaling, the host's time and breakdowns of a record as Markdown tables."""

import re
from collections.abc import Mapping
from typing import Any

from benchmarks import host_time, scaling
from benchmarks.ceilings import Ceilings
from benchmarks.figures import (
    CUDA_UNITS,
    MISSING,
    Line,
    Units,
    share_of_ceiling,
    spread_text,
    table,
    three_digits,
    units_of,
)
from benchmarks.fits import PowerLaw

#: Of a breakdown, the parts that are listed.
LISTED_PARTS = 6


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


def growth(letter: str, fit: PowerLaw | None) -> str:
    """Such as "K^1.02 (±4 %)"."""
    if fit is None:
        return MISSING
    return f"{letter}^{fit.exponent:.2f} (±{fit.off_by - 1:.0%})"


def host_table(record: Mapping[str, Any]) -> str:
    """The layers of one step, the whole of it last."""
    profile = record["host_time"]
    whole = profile["step"]["median"]
    name = f"{profile['batch']}×{profile['rows']}, D = {host_time.DIM}"
    lines = [
        {
            name: layer["name"],
            "µs [p20–p80]": spread_text(layer["seconds"], CUDA_UNITS),
            "of the step": f"{layer['seconds']['median'] / whole:.1%}",
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
            }
        )
    last = {"µs [p20–p80]": spread_text(profile["step"], CUDA_UNITS), "of the step": "100 %"}
    return table([*lines, {name: "the whole step, measured for itself", **last}])


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
    name = re.sub(r"(CompiledFxGraph) \w+", r"\1", name)  # without its hash
    return name if len(name) <= 48 else name[:47] + "…"
