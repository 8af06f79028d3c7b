"""The operators and kernels that take a step's time."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.cases import from_fields
from benchmarks.drawing import colours, panel
from benchmarks.figures import three_digits, units_of
from benchmarks.part_tables import short


def draw_breakdown(measured: Mapping[str, Any]) -> Figure:
    """The longest parts of a step, implementation by implementation, one panel a case."""
    units = units_of(measured)
    breakdowns = [one for one in measured["breakdowns"] if one["parts"]]
    cases = list(dict.fromkeys(from_fields(one["case"]) for one in breakdowns))
    palette = colours([one["implementation"] for one in breakdowns])
    groups = {
        case: [one for one in breakdowns if from_fields(one["case"]) == case] for case in cases
    }
    heights = [6 * len(group) + 1 for group in groups.values()]
    figure = Figure(figsize=(9.6, 0.2 * sum(heights) + 1.0), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (case, group) in zip(panels, groups.items(), strict=True):
        panel(axes, case.name, f"{units.time} of a step, as profiled", "")
        labels, y = [], 0.0
        for one in group:
            colour = palette[one["implementation"]]
            bars = _bars(one["parts"])
            whole = units.per_second * sum(part["seconds"] for part in one["parts"])
            axes.text(
                0,
                y,
                f" {one['implementation']}: {three_digits(whole)} {units.time}",
                color=colour,
                fontsize=9,
                fontweight="bold",
                va="center",
            )
            y += 1
            for name, seconds in bars:
                length = units.per_second * seconds
                axes.barh(y, length, color=colour, height=0.7)
                axes.text(length, y, f" {three_digits(length)}", fontsize=7, va="center")
                labels.append((y, name))
                y += 1
            y += 0.4
        axes.set_ylim(y - 0.5, -0.8)
        axes.set_yticks([at for at, _ in labels], [name for _, name in labels], fontsize=7)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.margins(x=0.08)
    return figure


def _bars(parts: Sequence[Mapping[str, Any]], most: int = 4) -> list[tuple[str, float]]:
    bars = [(short(part["name"]), part["seconds"]) for part in parts[:most]]
    if len(parts) > most:
        rest = sum(part["seconds"] for part in parts[most:])
        bars.append((f"{len(parts) - most} others", rest))
    return bars
