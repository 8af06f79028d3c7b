"""A record as pictures: ``python -m benchmarks.report.pictures RECORD.json``.

Equal records give equal files with one version of matplotlib; each file names its record's digest.
"""

import argparse
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.implementations.fifo import Compiled, Fused, PublishedEager
from benchmarks.measuring.breakdown import OPERATOR
from benchmarks.measuring.clocks import ROUNDS
from benchmarks.measuring.growth import GROWTH
from benchmarks.measuring.parts import STEP
from benchmarks.measuring.run import GRAPH
from benchmarks.report import tables
from benchmarks.report.record import Record, digest, load

DPI = 120
#: What a file's text chunk with the digest is called.
KEY = "Record"
COLOURS = {PublishedEager.name: "#555555", Compiled.name: "#d98e04", Fused.name: "#c0392b"}
OTHER_COLOURS = ("#2471a3", "#17a589", "#7d3c98", "#7f6b3f", "#2e86c1", "#a04000", "#117a65")
MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^", "tf32": "D"}
#: What a picture is of, by what its file's name ends with.
TITLES = {
    "scaling": "Time and extra memory of a step against K and against B",
    "roofline": "Rates against operations for each byte, below the machine's ceilings",
    "breakdown": "Operators or kernels that a step consists of",
}


def available(record: Record) -> list[str]:
    """Which of ``TITLES`` can be drawn of a record."""
    figures = {row["figure"] for row in record["rows"] if "median" in row}
    has = {
        "scaling": GROWTH in figures,
        "roofline": STEP in figures and not np.isnan(tables.rates(record)[1]),
        "breakdown": OPERATOR in figures,
    }
    return [name for name in TITLES if has[name]]


def draw_all(record: Record, folder: Path, stem: str) -> list[Path]:
    """Draws all that the record has into ``folder``, each STEM-NAME.png; files are replaced."""
    draw = {"scaling": draw_growth, "roofline": draw_roofline, "breakdown": draw_breakdown}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in available(record):
        paths.append(folder / f"{stem}-{name}.png")
        draw[name](record).savefig(paths[-1], dpi=DPI, metadata={KEY: digest(record)})
    return paths


def digest_in(picture: Path) -> str:
    """That of the record which a PNG file was drawn from; empty where it names none."""
    data, at = picture.read_bytes(), 8
    while at < len(data):  # chunks: length, kind, content, checksum
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        if kind == b"tEXt" and content.startswith(f"{KEY}\0".encode()):
            return content.partition(b"\0")[2].decode()
        at += 12 + length
    return ""


def colours(rows: pd.DataFrame) -> dict[str, str]:
    """Of implementations, the same in every picture of a record."""
    others = sorted(set(rows.implementation) - set(COLOURS))
    return COLOURS | dict(zip(others, OTHER_COLOURS, strict=False))


def panel(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_growth(record: Record) -> Figure:
    """Time and extra memory, each against K and B, on logarithmic axes."""
    rows = tables.frame(record)
    palette = colours(rows)
    name, scale = tables.unit(record)
    rows = rows[rows.figure == GROWTH].assign(time=rows["median"] * scale)
    rows["memory"] = rows.extra_bytes.clip(lower=tables.LEAST_BYTES) / 2**20
    grid = (figure := Figure(figsize=(10.4, 8.4), layout="constrained")).subplots(2, 2)
    for (axis, of_axis), column in zip(rows.groupby("axis", sort=False), grid.T, strict=False):
        head = f"{axis}, D = {of_axis.D.iloc[0]:.0f}, {of_axis.format.iloc[0]}"
        for axes, what, label in zip(column, ("time", "memory"), (name, "MiB"), strict=True):
            panel(axes, f"{what.title()} of a step against {head}", axis[0], label)
            for implementation, one in of_axis.groupby("implementation", sort=False):
                _draw_series(axes, one, axis[0], what, palette[implementation])
            if what == "memory" and of_axis.memory_limit.notna().any():
                limit = of_axis.memory_limit.min() / 2**20
                text = f"what a process may take: {limit / 1024:.0f} GiB"
                axes.axhline(limit, color="black", linewidth=0.8, linestyle="--", label=text)
            if what == "time" and (of_axis.rounds < ROUNDS).any():
                few = f"hollow: fewer than {ROUNDS} rounds"
                axes.plot([], [], "o", color="black", fillstyle="none", label=few)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
            axes.legend(fontsize=8, loc="upper left", frameon=False)
    return figure


def _draw_series(axes: Axes, one: pd.DataFrame, letter: str, what: str, colour: str) -> None:
    """Ours is drawn smaller, so that what lies below it shows."""
    implementation = one.implementation.iloc[0]
    grows = tables.exponent(one[letter], one[what])
    label = f"{implementation}: {letter}^{grows}" if grows else implementation
    for _, failed in one[one.outcome.notna()].iterrows():
        label += f", {failed.outcome} at {failed[letter]}"
    size = 4 if implementation == Fused.name else 7
    axes.plot(one[letter], one[what], marker="o", markersize=size, color=colour, label=label)
    few = one[one.rounds < ROUNDS] if what == "time" else one[:0]
    axes.plot(few[letter], few[what], "o", color="white", markersize=size - 2, markeredgewidth=0)


def draw_roofline(record: Record) -> Figure:
    """Rates against the operations for each byte, below what torch.mm and a copy allow."""
    rows = tables.frame(record)
    palette = colours(rows)
    rows = rows[rows.figure.isin((STEP, GRAPH)) & rows.rate.notna()]
    # By the device's clock where there is a graph.
    rows = rows.drop_duplicates(["case", "implementation"], keep="last")
    rows = rows.assign(intensity=rows.operations / rows.bytes)
    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    axes = figure.subplots()
    panel(axes, "", "operations for each byte that must be moved", "GFLOP/s")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for row in rows.itertuples():
        axes.plot(
            row.intensity,
            row.rate / 1e9,
            MARKERS[row.format],
            color=palette[row.implementation],
            markersize=7 * (row.D / 128) ** 0.4,  # widths may have the same intensity
            fillstyle="none" if "gpu" in record and row.figure == STEP else "full",
        )
    for name in rows.implementation.unique():
        axes.plot([], [], "o", color=palette[name], label=name)
    for kind in rows.format.unique():
        axes.plot([], [], MARKERS[kind], color="#bbbbbb", label=kind)
    if "gpu" in record:
        axes.plot([], [], "o", color="#bbbbbb", fillstyle="none", label="by the host's clock")
    axes.legend(fontsize=8, loc="lower right", title="larger: a larger D", title_fontsize=8)
    _draw_ceilings(axes, *tables.rates(record), rows.intensity)
    above = axes.secondary_xaxis("top")
    named = rows.drop_duplicates("case").sort_values("intensity")
    at = named.intensity.groupby((named.intensity.pct_change() > 0.1).cumsum())
    labels = [", ".join(named.case.loc[some.index]) for _, some in at]
    above.set_xticks(at.first(), labels, rotation=20, ha="left", fontsize=7)
    above.set_xticks([], minor=True)
    return figure


def _draw_ceilings(axes: Axes, mm: dict[str, float], copied: float, intensities: pd.Series) -> None:
    """From a third of the smallest number of operations for a byte to room for the names."""
    left, right = intensities.min() / 3, intensities.max() * 30
    for name, rate in mm.items():
        axes.plot([rate / copied, right], [rate / 1e9, rate / 1e9], "k-", linewidth=1)
        label = f"torch.mm, {name}: {rate / 1e9:.0f} GFLOP/s"
        axes.text(right, rate / 1e9, label, ha="right", va="bottom", fontsize=8)
    knee = max(mm.values()) / copied
    axes.plot([left, knee], [left * copied / 1e9, knee * copied / 1e9], "k-", linewidth=1)
    middle = (left * knee) ** 0.5
    label = f"copy: {copied / 1e9:.0f} GB/s "
    axes.text(middle, middle * copied / 1e9, label, ha="right", va="bottom", fontsize=8)
    axes.set_xlim(left, right)


def draw_breakdown(record: Record) -> Figure:
    """The longest parts of a step, implementation by implementation, one panel a case."""
    parts = tables.operators(record)
    palette = colours(tables.frame(record))
    name, scale = tables.unit(record)
    groups = list(parts.groupby("case", sort=False))
    heights = [len(of_case) + of_case.implementation.nunique() for _, of_case in groups]
    figure = Figure(figsize=(9.6, 0.19 * sum(heights) + 1.0), layout="constrained")
    grid = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (case, of_case) in zip(grid, groups, strict=True):
        panel(axes, case, f"{name} of a step, as profiled", "")
        labels: list[str] = []
        for implementation, one in of_case.groupby("implementation", sort=False):
            lengths = one["median"] * scale
            head = f" {implementation}: {tables.three_digits(lengths.sum())} {name}"
            style = {"color": palette[implementation], "va": "center"}
            axes.text(0, len(labels), head, fontsize=9, fontweight="bold", **style)
            labels += ["", *one.name]
            at = np.arange(len(labels) - len(one), len(labels))
            bars = axes.barh(at, lengths, color=palette[implementation], height=0.7)
            axes.bar_label(bars, map(tables.three_digits, lengths), padding=2, fontsize=7)
        axes.set_ylim(len(labels) - 0.4, -0.8)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.margins(x=0.08)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.pictures", description="Draws a record, beside it."
    )
    parser.add_argument("record", type=Path, help="a JSON file that benchmarks.report wrote")
    path: Path = parser.parse_args().record
    try:
        for picture in draw_all(load(path), path.parent, path.stem):
            print(picture)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
