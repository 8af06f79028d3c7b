"""Time and memory against K and B, on logarithmic axes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import scaling
from benchmarks.drawing import colours, panel
from benchmarks.figures import Units, units_of
from benchmarks.part_tables import growth
from benchmarks.peers import Fused

#: What is timed too seldom for percentiles.
FEW = f"hollow: fewer than {scaling.ROUNDS} rounds"


def draw_scaling(measured: Mapping[str, Any]) -> Figure:
    """Time and extra memory, each against K and B."""
    units = units_of(measured)
    series = [scaling.from_record(one) for one in measured["scaling"]]
    axes_of = list(dict.fromkeys(one.axis for one in series))
    figure = Figure(figsize=(5.2 * len(axes_of), 8.4), layout="constrained")
    grid = figure.subplots(2, len(axes_of), squeeze=False)
    palette = colours([one.implementation for one in series])
    for column, axis in enumerate(axes_of):
        letter, fixed = ("K", f"B = {axis.case.batch}")
        if axis.name == "batch":
            letter, fixed = "B", f"K = {axis.case.rows}"
        time, memory = grid[:, column]
        head = f"{fixed}, D = {axis.case.dim}, {axis.case.format}"
        panel(time, f"Time of a step: {head}", letter, units.time)
        panel(memory, f"Extra memory of a step: {head}", letter, "MiB")
        for one in series:
            if one.axis == axis:
                colour = palette[one.implementation]
                _draw_series(time, memory, one, letter, units, colour)
        limits = [one.memory_limit for one in series if one.memory_limit]
        if limits:
            text = f"what a process may take: {min(limits) / 2**30:.0f} GiB"
            memory.axhline(min(limits) / 2**20, color="black", linewidth=0.8, linestyle="--")
            memory.annotate(
                text,
                (0, min(limits) / 2**20),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=8,
            )
        drawn = [point for one in series if one.axis == axis for point in one.points]
        if any(point.seconds and point.rounds < scaling.ROUNDS for point in drawn):
            time.plot([], [], "o", color="black", fillstyle="none", label=FEW)
        for axes in (time, memory):
            if any(one.axis == axis and one.points[-1].outcome for one in series):
                axes.plot([], [], "X", color="black", label="where the fit expects what failed")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
            axes.legend(fontsize=8, loc="upper left", frameon=False)
    return figure


def _draw_series(
    time: Axes, memory: Axes, one: scaling.Series, letter: str, units: Units, colour: str
) -> None:
    timed = [point for point in one.points if point.seconds]
    end = one.points[-1]
    for axes, fit, values in (
        (
            time,
            one.time,
            [units.per_second * point.seconds.median for point in timed if point.seconds],
        ),
        (memory, one.memory, [(point.extra_bytes or 0) / 2**20 for point in timed]),
    ):
        if axes is memory and any(point.extra_bytes is None for point in timed):
            continue
        at = [point.value for point in timed]
        name = f"{one.implementation}: {growth(letter, fit)}"
        # Ours is drawn last, and smaller, so that what lies below it shows.
        size = 4 if one.implementation == Fused.name else 7
        axes.plot(at, values, marker="o", markersize=size, color=colour, label=name)
        for point, value in zip(timed, values, strict=True):
            if axes is time and point.rounds < scaling.ROUNDS:
                axes.plot(
                    point.value, value, "o", color="white", markersize=size - 2, markeredgewidth=0
                )
        if end.outcome and fit:
            # Where the fit expects it: the cross is no measurement.
            scale = units.per_second if axes is time else 2**-20
            expected = scale * fit(end.value)
            axes.plot([at[-1], end.value], [values[-1], expected], ":", color=colour)
            axes.plot(end.value, expected, "X", markersize=10, color=colour)
            axes.annotate(
                end.outcome,
                (end.value, expected),
                xytext=(-8, 2),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=colour,
            )
