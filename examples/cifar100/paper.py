"""Prints the paper's CIFAR-100 table with your own runs below it, or the commands that train them.

    python paper.py                                          # the table
    python paper.py commands                                 # the commands of all rows
    python paper.py commands resnet32x4 resnet8x4 | bash -e  # runs the commands of one row

Run it in the folder of these scripts. A command that is run again resumes its run; if the run is
finished, it does nothing.
"""

import argparse
import csv
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

import options as flags
import train_student
import train_teacher
from methods import PUBLISHED_TABLE, mean_and_deviation, method_of, trial_flags
from output import print_table
from rrd_kernels.loss import PROTOCOLS

PUBLISHED = json.loads((Path(__file__).parent / "published_results.json").read_text())
COLUMNS = ("teacher", *PUBLISHED_TABLE)
#: Settings that a run of the table has at their defaults.
COURSE = (
    *("dataset", "images", "batch_size", "accumulate", "learning_rate", "lr_decay_epochs"),
    *("lr_decay_rate", "weight_decay", "momentum"),
    *("kd_T", "feat_dim", "nce_k", "nce_t_s", "nce_t_t", "nce_t", "nce_m"),
)


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
    """The same of the runs in a ``--save_folder``, a number for each seed, after the last epoch:
    those on CIFAR-100 with the published settings that have run to the end of 240 epochs. Students
    alone count in every row of their architecture.

    The last epoch, not the best: so does the published table, and choosing by the test set would
    flatter all methods.
    """
    found: dict[Pair, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for kind in ("models", "student_model"):
        for path in sorted(folder.glob(f"{kind}/*/settings.json")):
            settings = json.loads(path.read_text())
            accuracy = _finished(path.parent / "epochs.csv")
            if accuracy is None or not _as_published(settings):
                continue
            for pair, column in _places(settings):
                found[pair][column].setdefault(settings["seed"], accuracy)
    return {
        pair: {column: list(seeds.values()) for column, seeds in columns.items()}
        for pair, columns in found.items()
    }


def _places(settings: Mapping[str, Any]) -> list[tuple[Pair, str]]:
    """The table's places that a run with these settings belongs to."""
    if "model_s" not in settings:
        return [(pair, "teacher") for pair in published() if pair.teacher == settings["model"]]
    method, student = method_of(settings), settings["model_s"]
    if method == "student":
        return [(pair, method) for pair in published() if pair.student == student]
    return [(Pair(settings["model_t"], student), method)] if method in PUBLISHED_TABLE else []


def _as_published(settings: Mapping[str, Any]) -> bool:
    """Whether all that changes the training's course is the default, but for networks, method and
    seed; mixed precision and the like may be used."""
    if "model_s" in settings:
        script, model = train_student.parse_arguments(["--distill", "none"]), settings["model_s"]
    else:
        script, model = train_teacher.parse_arguments([]), settings["model"]
    wanted = flags.plain_settings(script) | {
        "dataset": "cifar100",
        "learning_rate": flags.learning_rate_of(model, None),
    }
    if settings.get("beta") and settings["distill"] == "rrd":
        protocol = PROTOCOLS[settings["protocol"]]
        wanted |= {"nce_t_s": protocol.tau_s, "nce_t_t": protocol.tau_t}
    others = ("held_out", "classes", "projection_lr")
    if any(settings.get(name) is not None for name in others):
        return False
    return all(settings[name] == wanted[name] for name in COURSE if name in wanted)


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
    yield ["python", "train_teacher.py", "--model", pair.teacher, "--drop_last", *common]
    trained = f"{pair.teacher}_cifar100_trial_0/{pair.teacher}_last.pth"
    for method, own_flags in PUBLISHED_TABLE.items():
        path = [] if method == "student" else ["--path_t", str(save_folder / "models" / trained)]
        for seed in range(seeds):
            script = ["python", "train_student.py", "--model_s", pair.student, *own_flags]
            # The published code of 2025 leaves a smaller last batch out; that of 2024 does not, nor
            # does CRD's loader.
            last = [] if method.startswith("CRD") or method.endswith("2024") else ["--drop_last"]
            yield [*script, *path, *last, *trial_flags(method, seed), *common]


def table(rows: dict[Pair, dict[str, float]], runs: dict[Pair, dict[str, list[float]]]) -> Table:
    title = "CIFAR-100, top-1 test accuracy, %: published, and in rows 'here' your own runs"
    drawn = Table(title=title)
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
    parser.add_argument(
        "wanted", nargs="?", default="table", choices=("table", "commands"), help="what to print"
    )
    parser.add_argument(
        "pair",
        nargs="*",
        metavar="ARCH",
        help="teacher and student of one row, such as resnet32x4 resnet8x4 (default: all rows)",
    )
    parser.add_argument(
        "--seeds",
        default=1,
        type=flags.at_least(1),
        metavar="N",
        help="commands: students per method, with seeds 0 to N − 1, at least 1",
    )
    flags.add_save_folder(parser)
    options = parser.parse_args(arguments)
    if options.pair and tuple(options.pair) not in published():
        known = ", ".join(f"{pair.teacher} {pair.student}" for pair in published())
        pair = " ".join(options.pair)
        parser.error(f"no row has teacher and student {pair}; the rows are {known}")
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
    rows = published()
    if options.pair:
        rows = {pair: numbers for pair, numbers in rows.items() if pair == tuple(options.pair)}
    print_table(table(rows, own(options.save_folder)), width=156)
    print(f"source of the published figures: {PUBLISHED['source']}")


if __name__ == "__main__":
    flags.run_script(main)
