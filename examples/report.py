"""What came out of the distillation: a table, sentences, and a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from digits import Scores

#: Scores of each method, one for each seed, in the seeds' order.
Outcomes = Mapping[str, Sequence[Scores]]
#: Median milliseconds of a method's loss by backend.
Times = Mapping[str, Mapping[str, float]]

LEGEND = (
    "Scores are the mean ± standard deviation over seeds. Accuracy: share of correct answers. "
    "Agreement: share of answers equal to the teacher's. Similarity: correlation r of the cosines "
    "between images with the teacher's. ms/step: median time of the distillation loss alone, "
    "forward and backward, on one thread; fused: rrd_kernels, eager: the same in plain PyTorch."
)
MISSING = "–"
# Okabe and Ito's blue and vermilion, told apart by colour-blind readers too.
BLUE, VERMILION = "#0072B2", "#D55E00"


def table(outcomes: Outcomes, times: Times) -> Table:
    """One row a method; its columns are explained by ``LEGEND``."""
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    result.add_column("method", no_wrap=True)
    for title in (
        *("accuracy\n%", "agreement\n%", "similarity\nr"),
        *("fused\nms/step", "eager\nms/step"),
    ):
        result.add_column(title, justify="right", no_wrap=True)
    for name, scores in outcomes.items():
        taken = times.get(name, {})
        result.add_row(
            name,
            with_spread([100 * s.accuracy for s in scores]),
            with_spread([100 * s.agreement for s in scores]),
            with_spread([s.structure for s in scores], decimals=2),
            *(f"{taken[key]:.2f}" if key in taken else MISSING for key in ("fused", "eager")),
        )
    return result


def with_spread(values: Sequence[float], decimals: int = 1, sign: str = "-") -> str:
    """Mean ± standard deviation, which one value does not have."""
    mean = f"{statistics.mean(values):{sign}.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def sentences(outcomes: Outcomes, baseline: str, rival: str) -> str:
    """Which method is best, and all of them against ``baseline`` and ``rival``."""
    means = {name: statistics.mean(s.accuracy for s in of) for name, of in outcomes.items()}
    best = max(means, key=means.__getitem__)
    return (
        f"Highest mean accuracy: {best}, {means[best]:.1%}.\n"
        f"Accuracy minus that of {baseline}, in percentage points, paired by seed: "
        f"{_gains(outcomes, baseline, {baseline})}.\n"
        f"Accuracy minus that of {rival}: {_gains(outcomes, rival, {baseline, rival})}."
    )


def _gains(outcomes: Outcomes, peer: str, left_out: set[str]) -> str:
    gains = []
    for name, scores in outcomes.items():
        if name not in left_out:
            pairs = zip(scores, outcomes[peer], strict=True)
            points = [100 * (ours.accuracy - theirs.accuracy) for ours, theirs in pairs]
            gains.append(f"{name} {with_spread(points, sign='+')}")
    return ", ".join(gains)


def draw(
    outcomes: Outcomes,
    teacher_accuracy: float,
    structures: Mapping[str, tuple[Tensor, float]],
    class_sizes: Sequence[int],
    path: Path,
) -> None:
    """Writes the picture.

    Args:
        outcomes: one row of dots each.
        teacher_accuracy: in [0, 1], the line that students run up to.
        structures: four [N, N] similarity matrices and their correlations with the teacher's.
        class_sizes: of the images in those matrices, which are sorted by class.
        path: of the PNG; its folder is made.
    """
    figure = Figure(figsize=(13, 7), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=(1, 1.1))
    left, right = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    _draw_accuracies(left.subplots(), outcomes, teacher_accuracy)
    axes = right.subplots(2, 2, sharex=True, sharey=True)
    for axis, (name, (matrix, r)) in zip(axes.flat, structures.items(), strict=True):
        image = axis.imshow(matrix.numpy(), cmap="cividis", vmin=0, vmax=1)
        axis.set_title(f"{name}, r = {r:.2f}", fontsize=12)
        _label_classes(axis, class_sizes)
    right.colorbar(image, ax=axes, shrink=0.7, label="cosine of penultimate features")
    right.suptitle(
        "cosines between held-out images, by class, first seed; r: correlation with the teacher's"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_accuracies(axis: Axes, outcomes: Outcomes, teacher_accuracy: float) -> None:
    for row, scores in enumerate(outcomes.values()):
        percent = [100 * s.accuracy for s in scores]
        spread = statistics.stdev(percent) if len(percent) > 1 else 0
        axis.plot(percent, [row + 0.18] * len(percent), "o", color=BLUE, alpha=0.6)
        axis.errorbar(statistics.mean(percent), row, xerr=spread, fmt="D", color="black", capsize=4)
    axis.axvline(100 * teacher_accuracy, color=VERMILION, linestyle="--")
    axis.set_yticks(range(len(outcomes)), list(outcomes), fontsize=12)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("accuracy on held-out images, %", fontsize=12)
    axis.set_title("mean ± std, and each seed; dashed: teacher", fontsize=12)


def _label_classes(axis: Axes, class_sizes: Sequence[int]) -> None:
    ends = [sum(class_sizes[: c + 1]) for c in range(len(class_sizes))]
    centres = [end - size / 2 for end, size in zip(ends, class_sizes, strict=True)]
    for ticks in (axis.set_xticks, axis.set_yticks):
        ticks(centres, [str(c) for c in range(len(class_sizes))])
    axis.tick_params(length=0)
