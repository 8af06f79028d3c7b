"""The paper's CIFAR-100 table beside one's own runs, and the commands that make them.

    python examples/cifar100/paper.py                              # the table
    python examples/cifar100/paper.py commands                     # of every row
    python examples/cifar100/paper.py commands resnet32x4 resnet8x4 | bash -e

A command that is there already goes on where it was, or does nothing where it is done.
"""

import argparse
import csv
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

import options as flags
from methods import METHODS, mean_and_deviation, method_of, trial_flags
from output import print_table

PUBLISHED = json.loads((Path(__file__).parent / "published_results.json").read_text())
#: As the table has them; CRD is quoted, not implemented.
COLUMNS = ("teacher", "student", "KD", "CRD", *(name for name in METHODS if "RRD" in name))


class Pair(NamedTuple):
    """Architectures of a row."""

    teacher: str
    student: str


def published() -> dict[Pair, dict[str, float]]:
    """Top-1 test accuracy in percent, of each row and column."""
    rows = {}
    for part in ("same_architecture", "different_architecture"):
        numbers = PUBLISHED[part]
        for at, pair in enumerate(numbers["pairs"]):
            rows[Pair(*pair.split("->"))] = {name: numbers[name][at] for name in COLUMNS}
    return rows


def own(folder: Path) -> dict[Pair, dict[str, list[float]]]:
    """The same of the runs in a ``--save_folder``, after their last epoch: those on CIFAR-100 that
    have run to an end of 240 epochs. Students alone count in every row of their architecture.

    The last epoch, not the best: choosing by the test set would flatter all methods.
    """
    found: dict[Pair, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*/*/settings.json")):
        settings = json.loads(path.read_text())
        accuracy = _finished(path.parent / "epochs.csv")
        if settings["dataset"] != "cifar100" or accuracy is None:
            continue
        if "model_s" not in settings:
            for pair in published():
                if pair.teacher == settings["model"]:
                    found[pair]["teacher"].append(accuracy)
            continue
        method = method_of(settings)
        if method == "student":
            for pair in published():
                if pair.student == settings["model_s"]:
                    found[pair][method].append(accuracy)
        elif method is not None:
            found[Pair(settings["model_t"], settings["model_s"])][method].append(accuracy)
    return found


def _finished(epochs: Path) -> float | None:
    """Test accuracy in percent of the 240th epoch; None where it has not come."""
    if not epochs.exists():
        return None
    with epochs.open(newline="") as file:
        rows = {row["epoch"]: row for row in csv.DictReader(file)}
    return float(rows["240"]["test_acc"]) if "240" in rows else None


def commands(pair: Pair, seeds: int, save_folder: Path) -> Iterator[list[str]]:
    """What makes a row, from the folder of these scripts: the teacher, then each method."""
    common = ["--dataset", "cifar100", "--save_folder", str(save_folder), "--resume"]
    yield ["python", "train_teacher.py", "--model", pair.teacher, *common]
    trained = f"{pair.teacher}_cifar100_trial_0/{pair.teacher}_last.pth"
    for method, own_flags in METHODS.items():
        path = [] if method == "student" else ["--path_t", str(save_folder / "models" / trained)]
        for seed in range(seeds):
            script = ["python", "train_student.py", "--model_s", pair.student]
            yield [*script, *own_flags, *path, *trial_flags(method, seed), *common]


def table(rows: dict[Pair, dict[str, float]], runs: dict[Pair, dict[str, list[float]]]) -> Table:
    drawn = Table(title="CIFAR-100, top-1 test accuracy, %; published, and below it one's own")
    for name in ("teacher → student", *COLUMNS):
        drawn.add_column(name, justify="left" if "→" in name else "right")
    for pair, numbers in rows.items():
        drawn.add_row(f"{pair.teacher} → {pair.student}", *(f"{numbers[c]:.2f}" for c in COLUMNS))
        if mine := runs.get(pair):
            figures = [mean_and_deviation(mine[name]) if name in mine else "" for name in COLUMNS]
            drawn.add_row("  here", *figures)
    return drawn


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    parser.add_argument("--save_folder", default="save", type=Path, help="where runs are kept")
    wanted = parser.add_subparsers(dest="wanted").add_parser("commands", help="prints them")
    wanted.add_argument("pair", nargs="*", metavar="ARCH", help="teacher and student: of one row")
    wanted.add_argument("--seeds", default=1, type=flags.at_least(1), help="students per method")
    options = parser.parse_args(arguments)
    if options.wanted and options.pair and tuple(options.pair) not in published():
        known = ", ".join(f"{pair.teacher} {pair.student}" for pair in published())
        parser.error(f"no row has teacher and student {' '.join(options.pair)}; there are {known}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.wanted == "commands":
        pairs = [Pair(*options.pair)] if options.pair else list(published())
        lines = [
            shlex.join(command)
            for pair in pairs
            for command in commands(pair, options.seeds, options.save_folder)
        ]
        print("\n".join(dict.fromkeys(lines)))  # teachers and students alone are in several rows
        return
    print_table(table(published(), own(options.save_folder)), width=132)
    print(f"published: {PUBLISHED['source']}")


if __name__ == "__main__":
    flags.run_script(main)
