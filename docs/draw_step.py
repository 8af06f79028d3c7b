"""Draws docs/pictures/step.png, how a training step with the FIFO memory flows:

    python docs/draw_step.py

The same matplotlib and Pillow write the same bytes. A unit of the drawing is a tenth of an inch.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Line
from PIL import Image

PICTURE = Path(__file__).parent / "pictures" / "step.png"
Point = tuple[float, float]
STUDENT, TEACHER, PASS, PUBLISHED = "C0", "C1", "C2", "C3"
STUDENT_Y, TEACHER_Y, MEMORY_Y, PUBLISHED_Y = 44.5, 31.5, 20.75, 4.0  # centres
LANE, ROW = 9.0, 4.5  # heights of B queries and of the memory
SPLITS, TILES, TILE = (55.5, 69.5), 4, 3.3  # where splits begin, tiles in each, a tile's width
SPLIT, END = TILES * TILE, SPLITS[-1] + TILES * TILE
NOW, NEW = 1, 2  # the tile that each split is at; the tile that the batch's rows enter


def text(axes: Axes, x: float, y: float, words: str, ha: str = "center", **style: Any) -> None:
    """Lines around ``y``, equally far apart whatever their letters."""
    top = y - 0.5 + 1.9 * words.count("\n") / 2
    for at, line in enumerate(words.split("\n")):
        axes.text(x, top - 1.9 * at, line, horizontalalignment=ha, **{"fontsize": 10.5} | style)


def box(axes: Axes, x: float, y: float, size: Point, colour: str, words: str) -> None:
    """Words in a box of width and height ``size`` from ``x`` on, its centre at ``y``."""
    corner, (width, height) = (x + 0.5, y - size[1] / 2 + 0.5), size
    patch = FancyBboxPatch(corner, width - 1, height - 1, "round,pad=0.5", linewidth=1.3)
    patch.set(facecolor=to_rgba(colour, 0.12), edgecolor=colour)
    axes.add_patch(patch)
    text(axes, x + width / 2, y, words)


def cell(axes: Axes, x: float, y: float, size: Point, **style: Any) -> None:
    axes.add_patch(Rectangle((x, y - size[1] / 2), *size, **style))


def arrow(axes: Axes, colour: str, *points: Point) -> None:
    """Through ``points``, the head at the last."""
    line = FancyArrowPatch(path=Line(points), arrowstyle="-|>", mutation_scale=14, linewidth=1.6)
    line.set_color(colour)
    axes.add_patch(line)


def draw_lane(axes: Axes, y: float, colour: str, who: str, name: str, learns: str) -> None:
    """From features to queries, and these to the pass."""
    box(axes, 0.5, y, (14.5, 6), colour, f"{who} features\nf_{name} [B, {name}_dim]")
    box(axes, 17.8, y, (11, 6), colour, f"embed_{name}\n{learns}")
    box(axes, 31.6, y, (10, 6), colour, f"normalise\n{name} [B, D]")
    cell(axes, 44.4, y, (7.8, LANE), facecolor=to_rgba(colour, 0.45), edgecolor=colour)
    text(axes, 48.3, y, rf"${name}\,/\,\tau_{name}$", fontsize=14)
    for start, end in ((15, 17.8), (28.8, 31.6), (41.6, 44.4)):
        arrow(axes, colour, (start, y), (end, y))
    arrow(axes, PASS, (52.2, y), (SPLITS[0], y))


def draw_split(axes: Axes, split: int) -> None:
    """Memory rows, and above them their products with the queries, of one tile at a time."""
    start, x = SPLITS[split], SPLITS[split] + NOW * TILE
    for y in (STUDENT_Y, TEACHER_Y):
        for tile in range(TILES):
            style = {"edgecolor": "#bbbbbb", "linestyle": ":", "fill": tile == NOW}
            cell(axes, start + tile * TILE, y, (TILE, LANE), facecolor=to_rgba(PASS, 0.55), **style)
        arrow(axes, PASS, (x + TILE, y), (start + SPLIT - 0.8, y))
    for row in range(3 * TILES):
        face = to_rgba(TEACHER, 0.9 if (split, row // 3) == (0, NEW) else 0.2)
        size = TILE / 3, ROW
        cell(axes, start + row * TILE / 3, MEMORY_Y, size, facecolor=face, edgecolor="white")
    cell(axes, start, MEMORY_Y, (SPLIT, ROW), fill=False, edgecolor=TEACHER)
    cell(axes, x, MEMORY_Y, (TILE, ROW), fill=False, edgecolor=PASS, linewidth=2)
    arrow(axes, PASS, (x + TILE / 2, MEMORY_Y + ROW / 2), (x + TILE / 2, TEACHER_Y - LANE / 2))
    text(axes, start + SPLIT / 2, STUDENT_Y + 6, "split 1, ..." if split else "split 0")


def draw_results(axes: Axes) -> None:
    """Loss and gradient, at once, and the gradient's way back."""
    middle, half, x = (STUDENT_Y + TEACHER_Y) / 2, (STUDENT_Y - TEACHER_Y + LANE) / 2, 90.2
    text(axes, (SPLITS[0] + END) / 2, middle, "one pass, tile by tile: no B×K matrix")
    box(axes, 85, middle, (10.4, 2 * half), PASS, "combine\nthe sums of\nall splits")
    for y in (STUDENT_Y, TEACHER_Y):
        arrow(axes, PASS, (END, y), (85, y))
    box(axes, 86.2, MEMORY_Y, (8, ROW), PASS, "loss")
    arrow(axes, PASS, (x, middle - half), (x, MEMORY_Y + ROW / 2))
    top, back = STUDENT_Y + 10, 23.3  # to the middle of embed_s
    arrow(axes, STUDENT, (x, middle + half), (x, top), (back, top), (back, STUDENT_Y + 3))
    words = "gradient [B, D] of embed_s's output, from the same pass as the loss"
    text(axes, 24.5, top + 2, words, "left")
    text(axes, 24.5, top - 2, "backward only scales it", "left")


def draw_memory(axes: Axes) -> None:
    """What the memory holds, and how the batch's teacher rows enter it."""
    x, low = SPLITS[0] + (NEW + 0.5) * TILE, MEMORY_Y - 6.5
    arrow(axes, TEACHER, (36.6, TEACHER_Y - 3), (36.6, low), (x, low), (x, MEMORY_Y - ROW / 2))
    words = "protocol 2025: before the pass\nprotocol 2024: after the pass"
    text(axes, 35.4, MEMORY_Y, f"enqueue the B rows t\n{words}", "right")
    text(axes, SPLITS[0] - 1.2, MEMORY_Y, "memory [K, D]:\nearlier rows t", "right")
    words = "pointer: replaces the oldest rows,\nwraps around at K (FIFO ring)"
    text(axes, x + 1.2, low + 0.3, words, "left")


def draw_published(axes: Axes) -> None:
    """What the published code makes, under a line."""
    y, words = PUBLISHED_Y, "published code:\nthe same step"
    axes.axhline(y + 5.3, color="#dddddd")
    text(axes, 0.5, y, words, "left", weight="bold", color=PUBLISHED)
    box(axes, 17.8, y, (15, 6), PUBLISHED, "host sync:\nint(pointer)")
    arrow(axes, PUBLISHED, (32.8, y), (36.2, y))
    box(axes, 36.2, y, (20, 6), PUBLISHED, "2 clones of the\nmemory, [K, D] each")
    arrow(axes, PUBLISHED, (56.2, y), (59.6, y))
    words = "several B×K matrices:\nsimilarities, softmaxes, ..."
    box(axes, 59.6, y, (35.8, 6), PUBLISHED, words)


def draw() -> Figure:
    figure = Figure(figsize=(9.6, 5.9), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 96), ylim=(0, 59))
    axes.set_axis_off()
    text(axes, 0.5, STUDENT_Y + 11, "rrd_kernels:\none training step", "left", weight="bold")
    draw_lane(axes, STUDENT_Y, STUDENT, "student", "s", "learns")
    draw_lane(axes, TEACHER_Y, TEACHER, "teacher", "t", "no gradient")
    text(axes, 48.3, STUDENT_Y + 6, "2B queries")
    for split in range(len(SPLITS)):
        draw_split(axes, split)
    for part in (draw_results, draw_memory, draw_published):
        part(axes)
    return figure


def main() -> None:
    drawn = BytesIO()
    draw().savefig(drawn, dpi=150)
    picture = Image.open(drawn).convert("RGB").quantize(256)  # a third of the bytes
    picture.save(PICTURE, dpi=(150, 150), optimize=True)


if __name__ == "__main__":
    main()
