"""A record's pictures."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.measuring.run import GROWTH, OPERATOR, OURS
from benchmarks.report.record import Record
from benchmarks.report.tables import PLAIN, duration, frame, operators

LEAST_BYTES = 1 << 18  # what the measure of a CPU's memory cannot see counts as this in a fit
#: Implementations whose colour is the same in every picture, whatever else a record has.
KNOWN = (*PLAIN, "linear_cross_entropy", "SDPA math", "SDPA flash", OURS)
TITLES = {
    GROWTH: "Time and extra memory of a step against K and against B",
    OPERATOR: "Operators or kernels that a step consists of",
}


def draw_all(record: Record, folder: Path, stem: str) -> list[Path]:
    """Draws all that the record has into ``folder``, each STEM-FIGURE.png; files are replaced."""
    rows = frame(record)
    names = dict.fromkeys([*KNOWN, *rows.implementation.unique()])
    colours = {name: f"C{at}" for at, name in enumerate(names)}
    parts = ((draw_growth, rows[rows.figure == GROWTH]), (draw_operators, operators(rows)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (draw, some) in zip(TITLES, parts, strict=True):
        if len(some):
            paths.append(folder / f"{stem}-{name}.png")
            draw(some, colours).savefig(paths[-1], dpi=120)
    return paths


def exponent(xs: pd.Series, ys: pd.Series) -> str:
    """Such as "1.02 ±4%", a power law by least squares of the logarithms, and by how much a size
    lies off it; "?" of fewer than three sizes."""
    known = xs.notna() & ys.notna()
    if known.sum() < 3:
        return "?"
    log_x, log_y = np.log(xs[known]), np.log(ys[known])
    slope, constant = np.polyfit(log_x, log_y, 1)
    off = np.exp(np.sqrt(np.mean((log_y - constant - slope * log_x) ** 2))) - 1
    return f"{slope:.2f} ±{off:.0%}"


def draw_growth(rows: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Time and extra memory, each against K and B, on logarithmic axes."""
    rows = rows.assign(memory=rows.extra_bytes.clip(lower=LEAST_BYTES) / 2**20)
    along = rows.groupby("axis", sort=False)
    figure = Figure(figsize=(10.4, 10), layout="constrained")
    grid = figure.subplots(2, len(along), squeeze=False)
    for (axis, of_axis), (above, below) in zip(along, grid.T, strict=True):
        letter, first = axis[0], of_axis.iloc[0]
        for axes, what in ((above, "median"), (below, "memory")):
            for name, one in of_axis.groupby("implementation", sort=False):
                grows = f"{name}: {letter}^{exponent(one[letter], one[what])}"
                label = ", then ".join([grows, *one.outcome.dropna()])
                axes.plot(one[letter], one[what], "o-", color=colours[name], label=label)
            axes.set(xlabel=letter, yscale="log")
            axes.set_xscale("log", base=2)
            axes.grid(True, color="#dddddd")
        above.set(title=f"Time of a step against {axis}, D = {first.D:.0f}, {first.format}")
        above.yaxis.set_major_formatter(EngFormatter("s"))
        below.set(title=f"Extra memory against {axis}", ylabel="MiB")
        for limit in of_axis.memory_limit.dropna()[:1] / 2**20:
            label = f"what a process may take: {limit / 1024:.0f} GiB"
            below.axhline(limit, color="black", linestyle="--", label=label)
        for axes in (above, below):
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    return figure


def draw_operators(rows: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """The longest parts of a step, implementation by implementation, one panel a case."""
    cases = rows.groupby("case", sort=False)
    figure = Figure(figsize=(9.6, 0.2 * len(rows) + 1), layout="constrained")
    panels = figure.subplots(len(cases), squeeze=False, height_ratios=cases.size())[:, 0]
    for axes, (case, of_case) in zip(panels, cases, strict=True):
        for name, one in of_case.groupby("implementation", sort=False):
            label = f"{name}: {duration(one['median'].sum())}"
            bars = axes.barh(one.index, one["median"], color=colours[name], label=label)
            axes.bar_label(bars, one["median"].map(duration), padding=2, fontsize=7)
        axes.set_yticks(of_case.index, of_case.name, fontsize=7)
        axes.set(title=f"{case}, a step as profiled", xmargin=0.1)
        axes.set_ylim(of_case.index[-1] + 1, of_case.index[0] - 1)
        axes.xaxis.set_major_formatter(EngFormatter("s"))
        axes.legend(loc="lower right")
    return figure
