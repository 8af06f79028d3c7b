"""Probes the students of a comparison on another data set, and compares how well they transfer.

    python examples/cifar100/transfer_compare.py save/X.json --dataset digits --epochs 20 \\
        --lr_decay_epochs 10,15 --output save/X-to-digits.json

Each student of the record X.json that compare.py wrote is probed, with its weights after the last
epoch. All other options go to transfer_student.py unchanged; its --help lists them. Progress,
record, table and picture are as compare.py has them; compare.py --table shows the record too.
"""

import argparse
from pathlib import Path
from typing import Any

import options as flags
import train_student
import transfer_student
from comparing.report import COMPARISON, summary
from comparing.runner import Task
from comparing.trials import Key, Trials, add_common, carry_out, parse_common
from methods import trial_flags
from teacher import classes_of, load_teacher


def parse_arguments(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = flags.parser_of(__doc__)
    parser.add_argument(
        "record", type=Path, metavar="X.json", help="record of compare.py with the same save_folder"
    )
    add_common(parser)
    return parse_common(parser, arguments)


def student_of(comparison: dict[str, Any], method: str, seed: int, save_folder: Path) -> Path:
    """The last checkpoint of a student in the record of a comparison.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it has other weights than the record's.
    """
    settings = comparison["settings"][method]
    trial = trial_flags(method, seed)[-1]
    own = argparse.Namespace(**settings | {"save_folder": save_folder, "trial": trial})
    path = train_student.folder_of(own) / f"{own.model_s}_last.pth"
    if not path.is_file():
        raise FileNotFoundError(
            f"no student of {method}, seed {seed}, at {path}; give compare.py's --save_folder"
        )
    student = load_teacher(path, classes_of(path), own.model_s)
    if flags.digest_of(student) != comparison["student_digest"][method][seed]:
        raise ValueError(f"{path} has been trained anew since the record was written")
    return path


def main(arguments: list[str] | None = None) -> None:
    options, others = parse_arguments(arguments)
    comparison = COMPARISON.read(options.record)
    if "student_digest" not in comparison:
        raise ValueError(f"{options.record} is not a record of students")
    if options.output is not None and options.output.resolve() == options.record.resolve():
        raise ValueError(f"--output would replace the record {options.record}; name another file")
    tasks: dict[Key, Task] = {}
    for method, by_seed in comparison["accuracy"].items():
        for seed, accuracy in enumerate(by_seed):
            if accuracy is None:
                continue
            path = student_of(comparison, method, seed, options.save_folder)
            own = [*others, "--path_s", str(path), "--seed", str(seed)]
            own += ["--save_folder", str(options.save_folder), "--resume", "--quiet"]
            probe = transfer_student.parse_arguments(own)
            folder = transfer_student.folder_of(probe)
            tasks[method, seed] = Task(
                name=f"{method}, seed {seed}",
                script="transfer_student.py",
                arguments=tuple(own),
                folder=folder,
                checkpoint=folder / "probe_last.pth",
                epochs=probe.epochs,
                inputs=(path,),
            )
    if not tasks:
        raise ValueError(f"{options.record} has no finished student")
    trials = Trials(tasks, probe, options.jobs)

    def record_of() -> dict[str, Any]:
        figures = trials.figures()
        heading = f"Linear probe of students {probe.model_s} on {trials.images_in_words()}"
        students = comparison["settings"]
        return {
            "heading": heading,
            **figures,
            "students": students,
            "summary": summary(figures),
        }

    carry_out(trials, options.output, record_of, COMPARISON)


if __name__ == "__main__":
    flags.run_script(main)
