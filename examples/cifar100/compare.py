"""Trains students with several methods and seeds from one teacher, and compares their accuracies.

    python examples/cifar100/compare.py --model_s resnet8 --seeds 3 --path_t TEACHER.pth \\
        --epochs 10 --lr_decay_epochs 6,8 --output results/X.json
    python examples/cifar100/compare.py --table results/X.json

All other options go to train_student.py unchanged; its --help lists them. A finished run is not
repeated; an unfinished one is resumed. The second command prints the table of a record, and draws
its picture again. With --output X.json, X.json, the table X.md and the picture X.png are written
anew whenever a run has ended.
"""

import argparse
from typing import Any

import options as flags
from comparison_report import COMPARISON, summary
from methods import METHODS, PUBLISHED_TABLE, trial_flags
from trials import (
    add_students,
    carry_out,
    heading_of_students,
    parse_common,
    students,
)


def parse_arguments(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = flags.parser_of(__doc__)
    parser.allow_abbrev = False
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[*PUBLISHED_TABLE],
        choices=METHODS,
        metavar="NAME",
        help=f"methods, of {', '.join(map(repr, METHODS))} (default: the first eight)",
    )
    add_students(parser, seeds=3)
    return parse_common(parser, arguments, "path_t")


def main(arguments: list[str] | None = None) -> None:
    options, others = parse_arguments(arguments)
    if options.table is not None:
        COMPARISON.show(options.table)
        return
    runs = {}
    for method in dict.fromkeys(options.methods):
        own = METHODS[method]
        path = [] if "none" in own else ["--path_t", options.path_t]
        for seed in range(options.seeds):
            runs[method, seed] = [*others, *own, *path, *trial_flags(method, seed)]
    trials = students(runs, options.path_t, options.save_folder, options.jobs)

    def record_of() -> dict[str, Any]:
        assert trials.agreement is not None
        figures = trials.figures()
        return {
            "heading": heading_of_students(trials),
            "teacher": trials.agreement.teacher,
            **figures,
            "summary": summary(figures),
        }

    carry_out(trials, options.output, record_of, COMPARISON)


if __name__ == "__main__":
    flags.run_script(main)
