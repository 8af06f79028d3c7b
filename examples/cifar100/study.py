"""Trains students with one setting at a time varied around its default, from one teacher.

    python examples/cifar100/study.py --model_s resnet8 --path_t TEACHER.pth --epochs 10 \\
        --lr_decay_epochs 6,8 --vary nce_k=256,1024,4096,16384 --vary nce_t_s=0.02,0.04,0.1,0.2 \\
        --levels student KD --output save/X.json
    python examples/cifar100/study.py --table save/X.json

All other options go to train_student.py unchanged, and are the defaults that the study varies
around; its --help lists them. A finished run is not repeated; an unfinished one is resumed. The
second command prints the table of a record, and draws its picture again. With --output X.json,
X.json, the table X.md and the picture X.png are written anew whenever a run has ended.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import options as flags
import train_student
from comparing.study_report import DEFAULTS, STUDY
from comparing.trials import (
    Key,
    add_students,
    carry_out,
    heading_of_students,
    parse_common,
    students,
    with_others,
)
from methods import METHODS, trial_flags
from rrd_kernels.loss import PROTOCOLS

#: Options that a study sets itself, that change no result, or that are the same in all its runs.
FIXED = (
    *(*flags.MAY_CHANGE, "seed", "trial", "device", "distill", "model_s", "model_t"),
    *("dataset", "images", "held_out", "classes", "lr_decay_epochs"),
)


def _factor(text: str) -> tuple[str, list[str]]:
    """'nce_k=256,1024'."""
    name, _, values = text.partition("=")
    found = list(dict.fromkeys(value for value in values.split(",") if value))
    known = vars(train_student.parse_arguments(["--distill", "none"])).keys() - set(FIXED)
    if name not in known:
        raise argparse.ArgumentTypeError(
            f"no option of train_student.py to vary is called {name!r}; there are "
            f"{', '.join(sorted(known))}"
        )
    if not found:
        raise argparse.ArgumentTypeError(f"give values, such as {name}=1,2; got {text!r}")
    return name, found


def make_parser() -> argparse.ArgumentParser:
    parser = flags.parser_of(__doc__)
    parser.add_argument(
        "--method",
        default="RRD 2025",
        choices=METHODS,
        metavar="NAME",
        help=f"method of compare.py whose options are varied, of {', '.join(map(repr, METHODS))}",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        type=_factor,
        metavar="NAME=V,V,...",
        help="an option of train_student.py and its values, with the others at their defaults; may "
        "be given several times",
    )
    parser.add_argument(
        "--levels",
        nargs="+",
        default=(),
        choices=METHODS,
        metavar="NAME",
        help="methods of compare.py whose accuracy is a line in the picture, such as student KD "
        "(default: none)",
    )
    add_students(parser, seeds=1)
    return parser


def default_of(name: str, settings: argparse.Namespace) -> Any:
    """An option's value in a run with these settings; None where it is not known before."""
    value = getattr(settings, name)
    if value is None and name in ("nce_t_s", "nce_t_t") and settings.distill == "rrd":
        protocol = PROTOCOLS[settings.protocol]
        return protocol.tau_s if name == "nce_t_s" else protocol.tau_t
    if value is None and name in ("learning_rate", "projection_lr"):
        return flags.learning_rate_of(settings.model_s, settings.learning_rate)
    return value


def same(a: Any, b: Any) -> bool:
    """Whether two values of an option are one, as numbers where they are numbers."""
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return str(a) == str(b)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    options, others = parse_common(parser, arguments, "path_t")
    if options.table is not None:
        STUDY.show(options.table)
        return
    names = [name for name, _ in options.vary]
    if not names or len(set(names)) < len(names):
        parser.error("give --vary NAME=V,V,... once for each option that is to be varied")
    base = with_others(parser, [*METHODS[options.method], "--path_t", options.path_t], others)
    settings = train_student.parse_arguments(base)
    own: dict[str, Sequence[str]] = {DEFAULTS: base}
    factors: dict[str, dict[str, Any]] = {}
    for name, values in options.vary:
        default = default_of(name, settings)
        runs = {v: DEFAULTS if same(v, default) else f"{name}={v}" for v in values}
        if default is not None and DEFAULTS not in runs.values():
            runs[f"{default:g}" if isinstance(default, float) else str(default)] = DEFAULTS
        factors[name] = {"default": default, "runs": runs}
        for value, run in runs.items():
            if run == DEFAULTS:
                continue
            own[run] = [*base, f"--{name}={value}"]
            if train_student.parse_arguments([*own[run]]) == settings:
                parser.error(f"{run} changes nothing with --method {options.method!r}")
    for method in options.levels:
        path = [] if method == "student" else ["--path_t", options.path_t]
        own[method] = with_others(parser, [*METHODS[method], *path], others)
    all_runs: dict[Key, Sequence[str]] = {
        (run, seed): [*arguments, *trial_flags(run, seed)]
        for run, arguments in own.items()
        for seed in range(options.seeds)
    }
    trials = students(all_runs, options.path_t, options.save_folder, options.jobs)

    def record_of() -> dict[str, Any]:
        assert trials.agreement is not None
        return {
            "heading": heading_of_students(trials),
            "teacher": trials.agreement.teacher,
            "factors": factors,
            "levels": list(options.levels),
            **trials.figures(),
        }

    carry_out(trials, options.output, record_of, STUDY)


if __name__ == "__main__":
    flags.run_script(main)
