"""The table and the picture of a study, from its JSON record."""

from collections.abc import Collection, Mapping
from typing import Any

from matplotlib.figure import Figure

from comparing.paired import paired_difference, present, with_interval
from comparing.report import (
    DOT,
    MEAN,
    Report,
    draw_level,
    missing_note,
    seeds_in_words,
    several_seeds,
    tidy,
)
from methods import mean_and_deviation

#: The name of the run with every option at its default.
DEFAULTS = "defaults"
#: Values whose largest is at least this many times their smallest are drawn on a logarithmic axis.
WIDE = 8


def markdown(record: Mapping[str, Any], picture: str | None) -> str:
    """A table for each option that is varied.

    Args:
        record: ``accuracy`` by run, as :func:`comparing.report.summary` takes it; ``factors``, for
            each option its default and the run of each value; ``levels``, runs that are drawn as
            lines.
        picture: the file name of the picture, which is then shown below.
    """
    accuracy = record["accuracy"]
    several = several_seeds(record)
    parts = [record["heading"] + " One option at a time is varied, the others are at the default."]
    titles = ["accuracy", *["by seed"] * several, "− default"]
    for name, factor in record["factors"].items():
        lines = [[name, *titles], ["--:"] * (1 + len(titles))]
        for value in _places(factor["runs"]):
            run = factor["runs"][value]
            by_seed = accuracy[run]
            values = present(by_seed)
            label = f"{value} (default)" if run == DEFAULTS else value
            cells = [label, mean_and_deviation(values) if values else "–"]
            cells += [seeds_in_words(by_seed)] * several
            difference = paired_difference(by_seed, accuracy[DEFAULTS])
            cells.append("" if run == DEFAULTS else with_interval(difference))
            lines.append(cells)
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    levels = {run: present(accuracy[run]) for run in (DEFAULTS, *record["levels"])}
    notes = [
        "; ".join(
            f"{run}: {mean_and_deviation(values) if values else '–'}"
            for run, values in levels.items()
        )
        + "."
    ]
    if several:
        notes.append(
            "“accuracy”: mean ± standard deviation of the seeds. “− default”: mean difference with "
            "the same seed, and its 95 % interval by Student's t with n − 1 degrees of freedom for "
            "n seeds, each taken by itself."
        )
    else:
        notes.append("One seed each: a difference within the spread of seeds means nothing.")
    notes += missing_note(record)
    parts.append("\n".join(f"- {note}" for note in notes))
    if picture:
        parts.append(f"![Accuracy against each option]({picture})")
    return "\n\n".join(parts) + "\n"


def draw(record: Mapping[str, Any]) -> Figure:
    """A panel for each option: a dot for each seed, the means joined, the default marked."""
    accuracy, factors = record["accuracy"], record["factors"]
    several = several_seeds(record)
    columns = min(2, len(factors))
    rows = -(-len(factors) // columns)
    figure = Figure(figsize=(4.2 * columns, 0.8 + 2.8 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in panels[len(factors) :]:
        axes.set_axis_off()
    for axes, (name, factor) in zip(panels, factors.items(), strict=False):
        runs = factor["runs"]
        places = _places(runs)
        order = list(places)
        known = [value for value in order if present(accuracy[runs[value]])]
        means = []
        for value in known:
            values = present(accuracy[runs[value]])
            if several:
                axes.plot([places[value]] * len(values), values, "o", color=DOT, markersize=5)
            means.append(sum(values) / len(values))
        axes.plot([places[v] for v in known], means, "D-", color=MEAN, markersize=4, linewidth=1.2)
        for value, mean in zip(known, means, strict=True):
            if runs[value] == DEFAULTS:
                ring = {"markersize": 13, "markerfacecolor": "none", "color": MEAN}
                axes.plot(places[value], mean, "o", **ring)
        for method in record["levels"]:
            if values := present(accuracy[method]):
                draw_level(axes.axhline, method, sum(values) / len(values))
        if min(places.values()) > 0 and max(places.values()) >= WIDE * min(places.values()):
            axes.set_xscale("log")
        axes.set_xticks([places[value] for value in order], order)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(name)
        tidy(axes, "y")
    for axes in panels[::columns]:
        axes.set_ylabel("top-1 accuracy, %")
    first = panels[0]
    if several:
        first.plot([], [], "o", color=DOT, label="a seed")
    first.plot([], [], "D-", color=MEAN, label="mean" if several else "accuracy")
    first.plot([], [], "o", color=MEAN, markersize=10, markerfacecolor="none", label="default")
    handles, names = first.get_legend_handles_labels()
    ncols = 3 * columns
    figure.legend(
        handles, names, loc="outside lower center", ncols=ncols, fontsize=8, frameon=False
    )
    return figure


def _places(values: Collection[str]) -> dict[str, float]:
    """Where values stand along the axis, in its order: at their numbers, or one after the other."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return {value: float(at) for at, value in enumerate(values, start=1)}
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


STUDY = Report("factors", markdown, draw)
