"""Trains students with several methods and seeds from one teacher, and compares their accuracies.

    python examples/cifar100/compare.py --model_s resnet8 --seeds 3 --path_t TEACHER.pth \\
        --epochs 10 --lr_decay_epochs 6,8 --output save/X.json
    python examples/cifar100/compare.py --table save/X.json

All other options go to train_student.py unchanged; its --help lists them. A finished run is not
repeated; an unfinished one is resumed. The second command prints the table of a record, and draws
its picture again. With --output X.json, X.json, the table X.md and the picture X.png are written
anew whenever a run has ended.
"""

import argparse
import shlex
from typing import Any

import options as flags
from comparing.report import COMPARISON, summary
from comparing.trials import (
    add_students,
    carry_out,
    heading_of_students,
    parse_common,
    students,
    with_others,
)
from methods import METHODS, PUBLISHED_TABLE, trial_flags


def arguments_of(method: str) -> list[str]:
    """Of 'NAME' or 'NAME -FLAG VALUE ...', for train_student.py.

    Raises:
        ValueError: there is no such method.
    """
    name, dash, flags_of_it = method.partition(" -")
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"no method is called {name!r}; known methods: {known}")
    return [*METHODS[name], *shlex.split(dash + flags_of_it)]


def _method(text: str) -> str:
    try:
        arguments_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def make_parser() -> argparse.ArgumentParser:
    parser = flags.parser_of(__doc__)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[*PUBLISHED_TABLE],
        type=_method,
        metavar="NAME",
        help=f"methods, of {', '.join(map(repr, METHODS))}; or one with options of its own, which "
        "is a row of its own, such as 'CRD -b 0.1' (default: the first eight)",
    )
    add_students(parser, seeds=3)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    options, others = parse_common(parser, arguments, "path_t")
    if options.table is not None:
        COMPARISON.show(options.table)
        return
    runs = {}
    for method in dict.fromkeys(options.methods):
        own = arguments_of(method)
        path = [] if "none" in own else ["--path_t", options.path_t]
        for seed in range(options.seeds):
            mine = [*own, *path, *trial_flags(method, seed)]
            runs[method, seed] = with_others(parser, mine, others)
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
