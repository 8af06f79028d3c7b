"""What all pictures share."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from benchmarks.figures import PUBLISHED
from benchmarks.peers import Compiled, Fused

OURS, PUBLISHED_COLOUR, COMPILED = "#c0392b", "#555555", "#d98e04"
SDPA_COLOURS = ("#2471a3", "#17a589", "#7d3c98", "#7f6b3f")


def colours(names: Sequence[str]) -> dict[str, str]:
    """Of implementations, the same in every picture."""
    known = dict.fromkeys(PUBLISHED, PUBLISHED_COLOUR)
    known |= {Compiled.name: COMPILED, Fused.name: OURS}
    others = sorted({name for name in names if name not in known})
    return known | dict(zip(others, SDPA_COLOURS[: len(others)], strict=True))


def panel(axes: Axes, title: str, x: str, y: str) -> None:
    """An empty one, titled and labelled."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
