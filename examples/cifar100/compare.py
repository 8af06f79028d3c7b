"""Trains students with each method and several seeds from one teacher; prints their accuracies.

    python examples/cifar100/compare.py --model_s resnet8 --seeds 3 --path_t TEACHER.pth \\
        --epochs 10 --lr_decay_epochs 6,8

All other options go to train_student.py unchanged; its --help lists them. A finished run is not
repeated; an unfinished one is resumed.
"""

import argparse
import csv
import json
from typing import Any

from rich.table import Table

import engine
import options as flags
import train_student
from methods import METHODS, mean_and_deviation, trial_flags
from output import print_table, write_record


def parse_arguments(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = flags.parser_of(__doc__)
    parser.allow_abbrev = False
    parser.add_argument(
        "--seeds",
        default=3,
        type=flags.at_least(1),
        metavar="N",
        help="students per method, with seeds 0 to N − 1, at least 1",
    )
    parser.add_argument(
        "--path_t",
        required=True,
        metavar="PATH",
        help="teacher's checkpoint, a .pth file; required",
    )
    flags.add_save_folder(parser)
    flags.add_output(parser)
    return parser.parse_known_args(arguments)


def accuracy_of(arguments: list[str]) -> tuple[float, dict[str, Any]]:
    """Test accuracy in percent after the last epoch of the run, which is made or finished first,
    and its settings.

    The last, not the best: choosing an epoch by the test set would flatter all methods.
    """
    folder = train_student.main([*arguments, "--resume", "--quiet"])
    with (folder / "epochs.csv").open(newline="") as file:
        accuracy = float(list(csv.DictReader(file))[-1]["test_acc"])
    return accuracy, json.loads((folder / "settings.json").read_text())


def main(arguments: list[str] | None = None) -> None:
    options, others = parse_arguments(arguments)
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    settings: dict[str, dict[str, Any]] = {}
    for method, own in METHODS.items():
        path = [] if "none" in own else ["--path_t", options.path_t]
        for seed in range(options.seeds):
            run = [*trial_flags(method, seed), "--save_folder", str(options.save_folder)]
            accuracy, settings[method] = accuracy_of([*others, *own, *path, *run])
            found[method].append(accuracy)
    table = Table(title="top-1 test accuracy after the last epoch, %")
    for title in ("method", "mean ± standard deviation", "by seed"):
        table.add_column(title)
    for method, values in found.items():
        by_seed = "  ".join(f"{value:.2f}" for value in values)
        table.add_row(method, mean_and_deviation(values), by_seed)
    print_table(table)
    device = engine.device_of(train_student.parse_arguments([*others, "--distill", "none"]))
    # The settings of the last seed: seed and trial are all that the others differ in. Where files
    # lie is nobody's business, and the teacher is known by its digest.
    kept = {
        method: {name: value for name, value in each.items() if name not in flags.MAY_CHANGE}
        | {"epochs": each["epochs"]}
        for method, each in settings.items()
    }
    write_record(options.output, device, {"accuracy": found, "settings": kept})


if __name__ == "__main__":
    flags.run_script(main)
