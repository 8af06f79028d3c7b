"""Runs of several methods and seeds, and what is known of those that are finished."""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import engine
import options as flags
import train_student
from comparing.agreement import Agreement
from comparing.report import Report
from comparing.runner import Failure, Task, epochs_of, is_finished, read_json, run_all, shares
from output import write_record

#: A name, such as a method's, and a seed.
Key = tuple[str, int]
#: What the name and the seed of a student stand for.
OWN = (
    *("distill", "gamma", "alpha", "beta", "protocol", "memory_type", "similarity", "mode"),
    *("seed", "trial", "path_t"),
)


class Trials:
    """Trains what is not finished, and reads the figures.

    Args:
        tasks: the runs, each with its name and seed.
        options: of one of them, resolved by its script; data, device and epochs are those of all.
        jobs: as :func:`comparing.runner.shares` takes it.

    Raises:
        FileNotFoundError, ValueError: the data set cannot be read.
    """

    def __init__(
        self, tasks: Mapping[Key, Task], options: argparse.Namespace, jobs: int | None
    ) -> None:
        self.tasks, self.options = tasks, options
        self.device = engine.prepare(options)
        self.jobs, self.threads = shares(jobs, self.device.type)
        # Before any training: what has to be downloaded is, by one process.
        self.train, (_, self.images) = engine.make_data(options, self.device)
        self.agreement: Agreement | None = None
        self.found: dict[Key, dict[str, Any]] = {}

    def run(self, on_news: Callable[[], None]) -> list[Failure]:
        """Finishes all runs; ``on_news`` is called when a run is finished that was not."""
        keys = {task: key for key, task in self.tasks.items()}
        for task in filter(is_finished, keys):
            self.found[keys[task]] = self._figures(task)

        def on_end(task: Task) -> None:
            self.found[keys[task]] = self._figures(task)
            on_news()

        return run_all(list(keys), self.jobs, self.threads, on_end)

    def _figures(self, task: Task) -> dict[str, Any]:
        rows = {int(row["epoch"]): row for row in epochs_of(task.folder)}
        settings = read_json(task.folder / "settings.json")
        if task.epochs not in rows or settings is None:
            raise ValueError(
                f"{task.folder} lacks epoch {task.epochs} in epochs.csv, or settings.json; remove "
                f"the folder to train the run again"
            )
        trained_on = len(self.train)
        if settings["drop_last"]:
            trained_on -= trained_on % settings["batch_size"]
        seconds = [trained_on / float(row["images_per_second"]) for row in rows.values()]
        figures = {
            # The last, not the best: choosing an epoch by these images would flatter all methods.
            "accuracy": float(rows[task.epochs]["test_acc"]),
            "seconds_per_epoch": statistics.median(seconds),
            "settings": settings,
        }
        if self.agreement is not None:
            found = self.agreement.of(task.checkpoint, self.options.model_s)
            figures |= {name: found[name] for name in ("agreement", "student_digest")}
        return figures

    def by_seed(self, field: str) -> dict[str, list[Any]]:
        """For each name a value for each seed from 0 on, None where no such run is finished."""
        seeds = range(1 + max(seed for _, seed in self.tasks))
        names = dict.fromkeys(name for name, _ in self.tasks)
        return {
            name: [self.found.get((name, seed), {}).get(field) for seed in seeds] for name in names
        }

    def images_in_words(self) -> str:
        """Which data, for how long, and what the accuracy is measured on."""
        kind = "held-out training" if self.options.held_out else "test"
        amp = f", {self.options.amp} autocast" if self.options.amp else ""
        return (
            f"{self.options.dataset}: {len(self.train)} training images of "
            f"{len(self.train.classes)} classes, {self.options.epochs} epochs, batches of "
            f"{self.options.batch_size}{amp}. Top-1 accuracy in percent after the last epoch, on "
            f"{len(self.images.images)} {kind} images."
        )

    def figures(self) -> dict[str, Any]:
        """For the record: the figures by seed, how they were trained, the settings of each name."""
        fields = ["accuracy", "seconds_per_epoch"]
        if self.agreement is not None:
            fields[1:1] = ["agreement", "student_digest"]
        settings = {
            name: _kept([each for each in by_seed if each])
            for name, by_seed in self.by_seed("settings").items()
            if any(by_seed)
        }
        return {
            **{field: self.by_seed(field) for field in fields},
            "jobs": self.jobs,
            "threads_per_run": self.threads,
            "settings": settings,
        }


def _kept(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the last seed: seed and trial are all that the others differ in. Where files
    lie is nobody's business, and networks are known by their digests."""
    last = by_seed[-1]
    kept = {name: value for name, value in last.items() if name not in flags.MAY_CHANGE}
    return kept | {"epochs": last["epochs"]}


def students(
    runs: Mapping[Key, Sequence[str]], path_t: str, save_folder: Path, jobs: int | None
) -> Trials:
    """Students of one teacher, and their agreement with it.

    Args:
        runs: the arguments of train_student.py.
        path_t: the teacher's checkpoint.
        save_folder, jobs: the command line's.

    Raises:
        FileNotFoundError, ValueError: the data set or the teacher cannot be read.
        SystemExit: train_student.py does not take the arguments.
    """
    tasks = {}
    for (name, seed), own in runs.items():
        arguments = [*own, "--save_folder", str(save_folder), "--resume", "--quiet"]
        options = train_student.parse_arguments(arguments)
        folder = train_student.folder_of(options)
        tasks[name, seed] = Task(
            name=f"{name}, seed {seed}",
            script="train_student.py",
            arguments=tuple(arguments),
            folder=folder,
            checkpoint=folder / f"{options.model_s}_last.pth",
            epochs=options.epochs,
            inputs=() if options.path_t is None else (options.path_t,),
            before=options.init_epochs or 0,
        )
    trials = Trials(tasks, options, jobs)
    model_t = options.model_t
    trials.agreement = Agreement(Path(path_t), model_t, trials.images, trials.device, options.amp)
    return trials


def heading_of_students(trials: Trials) -> str:
    """What was trained from which teacher on what."""
    assert trials.agreement is not None
    teacher = trials.agreement.teacher
    accuracy = f" of {teacher['accuracy']:.2f} %" if "accuracy" in teacher else ""
    return (
        f"Student {trials.options.model_s}, teacher {teacher['architecture']}{accuracy}, "
        f"{trials.images_in_words()}"
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of all scripts that train many students, or probe them."""
    parser.allow_abbrev = False
    flags.add_jobs(parser)
    flags.add_save_folder(parser)
    flags.add_output(parser)


def add_students(parser: argparse.ArgumentParser, seeds: int) -> None:
    """The options of the scripts that train students, with a default number of seeds."""
    parser.add_argument(
        "--seeds",
        default=seeds,
        type=flags.at_least(1),
        metavar="N",
        help="students of each kind, with seeds 0 to N − 1, at least 1",
    )
    parser.add_argument(
        "--path_t",
        metavar="PATH",
        help="teacher's checkpoint, a .pth file; required unless --table is given",
    )
    add_common(parser)
    parser.add_argument(
        "--table",
        type=Path,
        metavar="PATH",
        help="train nothing: print the table of this record, a .json file, and write table and "
        "picture beside it",
    )


def parse_common(
    parser: argparse.ArgumentParser, arguments: list[str] | None, needed: str = ""
) -> tuple[argparse.Namespace, list[str]]:
    """The parser's own options, and the others.

    Args:
        needed: an option that may not be missing unless there is ``--table``.
    """
    options, others = parser.parse_known_args(arguments)
    table = getattr(options, "table", None)
    if table is None and needed and getattr(options, needed) is None:
        parser.error(f"give --{needed}, or --table with a record")
    if table is not None and others:
        parser.error(f"--table trains nothing: give it without {' '.join(others)}")
    for path in (table, options.output):
        if path is not None and path.suffix != ".json":
            parser.error(f"a record's name must end in .json; got {path}")
    if options.output is not None:  # before any training
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=options.output.parent):
                pass
        except OSError as error:
            parser.error(f"cannot write to {options.output.parent}: {error.strerror}")
    return options, others


def with_others(
    parser: argparse.ArgumentParser, own: Sequence[str], others: Sequence[str]
) -> list[str]:
    """A student's arguments: its ``own``, and those that all have.

    The others may not change what the name of a run stands for; if they do, the process ends.
    """
    both = [*own, *others]
    wanted, found = (vars(train_student.parse_arguments(each)) for each in ([*own], both))
    for name in OWN:
        if found[name] != wanted[name]:
            parser.error(
                f"{parser.prog} itself sets {name} of the runs, here {wanted[name]}: give it "
                f"without {name} {found[name]}"
            )
    return both


def carry_out(
    trials: Trials,
    output: Path | None,
    record_of: Callable[[], dict[str, Any]],
    report: Report,
) -> None:
    """Trains, writes the record with table and picture whenever a run has ended, prints the table.

    Ends the process with status 1 if a run has failed.

    Args:
        output: the record's path. None: only the table is printed.
        record_of: what is known now, as ``report`` takes it.
        report: makes table and picture.
    """

    def write(quiet: bool = True) -> None:
        if output is not None and trials.found:
            record = record_of()
            write_record(output, trials.device, record, quiet=quiet)
            report.write(record, output)

    failures = trials.run(write)
    write(quiet=False)
    if trials.found:
        print(report.markdown(record_of(), None))
    if failures:
        lines = "".join(f"\n  {failure}" for failure in failures)
        sys.exit(f"error: {len(failures)} runs failed; the same command tries them again{lines}")
