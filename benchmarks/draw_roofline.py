"""Rates below the ceilings of the machine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import AnyCase, Case, from_fields
from benchmarks.ceilings import Ceilings
from benchmarks.drawing import colours, panel
from benchmarks.figures import Units, units_of

MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^", "tf32": "D"}


def draw_roofline(measured: Mapping[str, Any]) -> Figure:
    """Rates against the operations for each byte, below what torch.mm and a copy allow."""
    units, ceilings = units_of(measured), Ceilings.of_record(measured)
    rows = [row for row in measured["rows"] if "gflops" in row]
    cases = list(dict.fromkeys(from_fields(row["case"]) for row in rows))
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    palette = colours(names)
    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    axes = figure.subplots()
    panel(axes, "", "operations for each byte that must be moved", units.rate)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _draw_ceilings(axes, ceilings, [_intensity(case) for case in cases], units)
    for row in rows:
        case = from_fields(row["case"])
        axes.plot(
            _intensity(case),
            1e9 * row["gflops"] / units.operations,
            MARKERS[case.format or ""],
            color=palette[row["implementation"]],
            markersize=_size(case),
            alpha=0.85,
            **_filling(measured, row),
        )
    for name in names:
        axes.plot([], [], "o", color=palette[name], label=name)
    for kind in dict.fromkeys(case.format for case in cases):
        axes.plot([], [], MARKERS[kind or ""], color="#bbbbbb", label=kind)
    if any("fillstyle" in _filling(measured, row) for row in rows):
        axes.plot([], [], "o", color="#bbbbbb", fillstyle="none", label="by the host's clock")
    widths = sorted({case.dim for case in cases if isinstance(case, Case)})
    for case in [Case(1, 1, "float32", dim) for dim in widths] if len(widths) > 1 else []:
        axes.plot([], [], "o", color="#bbbbbb", markersize=_size(case), label=f"D = {case.dim}")
    axes.legend(fontsize=8, loc="lower right")
    above = axes.secondary_xaxis("top")
    columns = _columns(cases)
    above.set_xticks(list(columns), list(columns.values()), rotation=30, ha="left", fontsize=8)
    above.set_xticks([], minor=True)
    for x in columns:
        axes.axvline(x, color="#bbbbbb", linewidth=0.6, linestyle=":", zorder=0)
    return figure


def _filling(measured: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Hollow where a GPU's step was timed by another clock than that of the others."""
    if "gpu" in measured and not row.get("replay"):
        return {"fillstyle": "none"}
    return {"markeredgewidth": 0}


def _intensity(case: AnyCase) -> float:
    return (case.operations or 0) / case.bytes


def _size(case: AnyCase) -> float:
    """Of a marker: widths have the same operations for a byte, and are told apart by it."""
    return 7 * (case.dim / 128) ** 0.4 if isinstance(case, Case) else 7


def _columns(cases: Sequence[AnyCase]) -> dict[float, str]:
    """The names of the cases at each number of operations for a byte, which some share."""
    named: dict[float, list[str]] = {}
    for case in cases:
        close = [x for x in named if abs(_intensity(case) / x - 1) < 0.1]
        named.setdefault(close[0] if close else _intensity(case), []).append(case.name)
    return {x: ", ".join(_without_repetition(names)) for x, names in named.items()}


def _without_repetition(names: Sequence[str]) -> Iterator[str]:
    """What a name adds to an earlier one that it begins with."""
    for at, name in enumerate(names):
        known = [earlier for earlier in names[:at] if name.startswith(f"{earlier} ")]
        yield name.removeprefix(known[0]).strip() if known else name


def _draw_ceilings(
    axes: Axes, ceilings: Ceilings, intensities: Sequence[float], units: Units
) -> None:
    """From a third of the smallest number of operations for a byte to room for the names."""
    assert ceilings.copy_rate is not None
    slope = ceilings.copy_rate / units.operations
    left, right = min(intensities) / 3, max(intensities) * 30
    for name, rate in ceilings.mm_rate.items():
        peak = rate / units.operations
        axes.plot([peak / slope, right], [peak, peak], color="black", linewidth=1)
        axes.annotate(
            f"torch.mm, {name}: {peak:.0f} {units.rate}",
            (right, peak),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    highest = max(ceilings.mm_rate.values()) / units.operations
    axes.plot([left, highest / slope], [left * slope, highest], color="black", linewidth=1)
    middle = (left * highest / slope) ** 0.5
    axes.annotate(
        f"copy: {ceilings.copy_rate / 1e9:.0f} GB/s",
        (middle, middle * slope),
        xytext=(-6, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.set_xlim(left, right)
