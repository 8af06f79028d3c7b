"""The table and the picture of a comparison, from its JSON record."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import files
from comparing.paired import paired_difference, present, with_interval
from methods import mean_and_deviation

#: What the others are compared with, and the colour and style of its line in the picture. These and
#: the dots' are from the colours that Okabe and Ito chose for all kinds of colour vision
#: (jfly.uni-koeln.de/color).
REFERENCES = {"student": ("#D55E00", "--"), "KD": ("#009E73", "-.")}
DOT, MEAN = "#56B4E9", "#000000"
DPI = 150
#: The script that shows a record, by the field that its kind has. A study's record has both.
SCRIPTS = {"factors": "study.py", "accuracy": "compare.py"}


def summary(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each method with a finished run, the most accurate first.

    Args:
        record: ``accuracy``: for each method a number for each seed from 0 on, in percent, None
            where the run is missing; ``agreement`` and ``seconds_per_epoch`` likewise, if it has
            them.

    Returns:
        Of each: ``method``, ``mean``, ``deviation`` (None of one seed), ``differences`` to each of
        ``REFERENCES`` that there is as :func:`comparing.paired.paired_difference` has them,
        ``agreement``, the mean, and ``seconds_per_epoch``, the median; None where they are not
        known.
    """
    accuracy = record["accuracy"]
    rows = []
    for method, by_seed in accuracy.items():
        values = present(by_seed)
        if not values:
            continue
        agreement = present(record.get("agreement", {}).get(method, ()))
        seconds = present(record.get("seconds_per_epoch", {}).get(method, ()))
        differences = {
            other: paired_difference(by_seed, accuracy[other])
            for other in _references(record)
            if other != method
        }
        row = {
            "method": method,
            "mean": statistics.mean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "differences": differences,
            "agreement": statistics.mean(agreement) if agreement else None,
            "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        }
        rows.append(row)
    return sorted(rows, key=lambda row: -row["mean"])


def _references(record: Mapping[str, Any]) -> list[str]:
    """Those that have a figure, unless there is nothing else to compare with them."""
    known = {method for method, by_seed in record["accuracy"].items() if present(by_seed)}
    return [other for other in REFERENCES if other in known and known != {other}]


def seeds_in_words(by_seed: Sequence[float | None]) -> str:
    """The figures of the seeds in their order."""
    return ", ".join("–" if value is None else f"{value:.2f}" for value in by_seed)


def missing_note(record: Mapping[str, Any]) -> list[str]:
    """A note that names the runs without a figure; none where there are none."""
    absent = [
        f"{method}, seed {seed}"
        for method, by_seed in record["accuracy"].items()
        for seed, value in enumerate(by_seed)
        if value is None
    ]
    return [f"**Missing**, not finished or failed: {'; '.join(absent)}."] if absent else []


def markdown(record: Mapping[str, Any], picture: str | None) -> str:
    """The table with what its columns mean.

    Args:
        record: as :func:`summary` takes it.
        picture: the file name of the picture, which is then shown below.
    """
    rows, others = summary(record), _references(record)
    with_agreement = any(row["agreement"] is not None for row in rows)
    with_seconds = any(row["seconds_per_epoch"] is not None for row in rows)
    titles = ["method", "mean ± standard deviation", "by seed", *(f"− {o}" for o in others)]
    titles += ["agreement, %"] * with_agreement + ["s per epoch"] * with_seconds
    lines = [titles, ["---", "--:", "---", *["--:"] * (len(titles) - 3)]]
    for row in rows:
        by_seed = record["accuracy"][row["method"]]
        cells = [row["method"], mean_and_deviation(present(by_seed))]
        cells.append(seeds_in_words(by_seed))
        cells += [with_interval(row["differences"].get(other)) for other in others]
        if with_agreement:
            cells.append("–" if row["agreement"] is None else f"{row['agreement']:.2f}")
        if with_seconds:
            seconds = row["seconds_per_epoch"]
            cells.append("–" if seconds is None else f"{seconds:.1f}")
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = []
    if others:
        columns = " and ".join(f"“− {other}”" for other in others)
        notes.append(
            f"{columns}: mean difference in accuracy to that method with the same seed, in points, "
            f"and its 95 % interval by Student's t with n − 1 degrees of freedom for n seeds (none "
            f"for one seed). It is of the seeds alone, not of the choice of images, and each is "
            f"taken by itself: of twenty intervals one is expected to miss."
        )
    if with_agreement:
        notes.append(
            "“agreement”: images, of those that the accuracy is measured on, for which student and "
            "teacher predict the same class, after the last epoch, mean of the seeds."
        )
    if with_seconds:
        together = ""
        if "jobs" in record:
            together = (
                f", {record['jobs']} trainings at a time with {record['threads_per_run']} CPU "
                f"thread(s) each"
            )
        notes.append(
            f"“s per epoch”: wall clock of the training without the evaluation, and without a "
            f"first stage where the method has one; median of the epochs, then of the seeds, on "
            f"shared cores{together}."
        )
    notes += missing_note(record)
    text = f"{record.get('heading', 'Top-1 accuracy after the last epoch, in percent.')}\n\n{table}"
    if notes:
        text += "\n\n" + "\n".join(f"- {note}" for note in notes)
    if picture:
        text += f"\n\n![Accuracy of each method, by seed, with mean and interval]({picture})"
    return text + "\n"


def draw(record: Mapping[str, Any]) -> Figure:
    """Methods down the side as in the table: above, a dot for each seed; below, the mean, and the
    interval of the difference to the student alone, which meets the student's line where it
    contains zero. A method far below the others is named with its mean, and an arrow stands where
    its row is cut off."""
    rows = summary(record)
    means = {row["method"]: row["mean"] for row in rows}
    several = several_seeds(record)
    apart = 0.17 if several else 0
    figure = Figure(figsize=(8, 1.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    extents: dict[str, list[float]] = {}
    intervals = False
    for at, row in enumerate(rows):
        values = present(record["accuracy"][row["method"]])
        extents[row["method"]] = [*values]
        if several:
            axes.plot(values, [at - apart] * len(values), "o", color=DOT, markersize=5)
        difference = row["differences"].get("student")
        if difference is not None and difference["low"] is not None:
            ends = [means["student"] + difference[end] for end in ("low", "high")]
            axes.plot(ends, [at + apart] * 2, "|-", color=MEAN, linewidth=1)
            extents[row["method"]] += ends
            intervals = True
        axes.plot(row["mean"], at + apart, "D", color=MEAN, markersize=4)
    cut_off = _leave_out(axes, extents, _far_below(means))
    names = list(means)
    for at, name in enumerate(names):
        if name in cut_off:
            names[at] += f"\n{mean_and_deviation(present(record['accuracy'][name]))}"
            side = axes.get_yaxis_transform()  # from 0 at the left to 1
            axes.plot(0.01, at + apart, "<", color=MEAN, markersize=5, transform=side)
    if several:
        axes.plot([], [], "o", color=DOT, label="a seed")
    axes.plot([], [], "D", color=MEAN, label="mean" if several else "accuracy")
    if intervals:
        label = "95 % interval of the difference to the student"
        axes.plot([], [], "|-", color=MEAN, linewidth=1, label=label)
    if cut_off:
        axes.plot([], [], "<", color=MEAN, markersize=5, label="more of it is further left")
    for method, mean in means.items():
        if method in REFERENCES:
            draw_level(axes.axvline, method, mean)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("top-1 accuracy after the last epoch, %")
    tidy(axes, "x")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _far_below(means: Mapping[str, float]) -> set[str]:
    """Methods that are below the median by more than three times what the best is above it, without
    ``REFERENCES``."""
    if not means:
        return set()
    median = statistics.median(means.values())
    bound = median - 3 * (max(means.values()) - median)
    far = {method for method, mean in means.items() if mean < bound < median}
    return far - REFERENCES.keys()


def _leave_out(axes: Axes, extents: Mapping[str, Sequence[float]], far: set[str]) -> set[str]:
    """Limits the axis to what the other methods need, since those that are ``far`` would leave
    little of it to them; the methods that this cuts off at the left."""
    if not far:
        return set()
    kept = [x for method, extent in extents.items() if method not in far for x in extent]
    margin = 0.05 * (max(kept) - min(kept))
    left = min(kept) - margin
    axes.set_xlim(left, max(kept) + margin)
    return {method for method in far if min(extents[method]) < left}


def several_seeds(record: Mapping[str, Any]) -> bool:
    """Whether a run has more than one seed."""
    return max(map(len, record["accuracy"].values()), default=0) > 1


def draw_level(line: Any, method: str, value: float) -> None:
    """A method's mean as a line: ``axvline`` or ``axhline`` of the axes."""
    colour, style = REFERENCES.get(method, ("#CC79A7", ":"))
    name = "student alone" if method == "student" else method
    line(value, color=colour, linestyle=style, linewidth=1.2, zorder=1, label=name)


def tidy(axes: Axes, along: Literal["x", "y"]) -> None:
    """Lines across one axis, no frame."""
    axes.grid(axis=along, color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


class Report(NamedTuple):
    """How a kind of record is shown.

    Attributes:
        field: that such records have.
        markdown: from a record, and the file name of its picture or None, to the table.
        draw: from a record to the picture.
    """

    field: str
    markdown: Callable[[Mapping[str, Any], str | None], str]
    draw: Callable[[Mapping[str, Any]], Figure]

    def write(self, record: Mapping[str, Any], path: Path) -> None:
        """The table as X.md and the picture as X.png, beside the record X.json."""
        picture = path.with_suffix(".png")
        files.write_text(path.with_suffix(".md"), self.markdown(record, picture.name))
        with files.replacing(picture) as temporary:
            self.draw(record).savefig(temporary, dpi=DPI)

    def read(self, path: Path) -> dict[str, Any]:
        """A record.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no JSON record: {error}") from error
        known = record if isinstance(record, dict) else {}
        found = next((field for field in SCRIPTS if field in known), None)
        if found is None:
            raise ValueError(f"{path} is no record of a comparison or a study")
        if found != self.field:
            raise ValueError(f"{path} is a record for {SCRIPTS[found]} --table")
        return known

    def show(self, path: Path) -> None:
        """Prints the table of the record that ``path`` holds, and writes both; raises as
        :meth:`read` does."""
        record = self.read(path)
        self.write(record, path)
        print(self.markdown(record, None))


COMPARISON = Report("accuracy", markdown, draw)
