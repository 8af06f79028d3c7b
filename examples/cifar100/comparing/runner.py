"""Trainings side by side, each a process of its own. The same call again does what is missing."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

import files
import lock

SCRIPTS = Path(__file__).resolve().parents[1]
#: Seconds between two looks at the processes.
PAUSE = 0.5


class Task(NamedTuple):
    """A training.

    Attributes:
        name: for people, such as ``"KD, seed 1"``.
        script: one in the folder above that trains, writes ``epochs.csv`` and takes ``--resume``.
        arguments: its arguments, with ``--resume``.
        folder: where it writes.
        checkpoint: its last, in the folder.
        epochs: how many it is to have in the end.
        inputs: files that it depends on, besides data sets.
        before: epochs of a first stage, in the folder ``first_stage``.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    folder: Path
    checkpoint: Path
    epochs: int
    inputs: tuple[Path, ...] = ()
    before: int = 0

    @property
    def log(self) -> Path:
        """What the processes print, those of killed runs too."""
        return self.folder / "log.txt"


class Failure(NamedTuple):
    """A process that ended with another status than 0, and the last line of its log."""

    task: Task
    status: int
    reason: str

    def __str__(self) -> str:
        return f"{self.task.name}: {self.reason} (exit status {self.status}, log {self.task.log})"


def shares(jobs: int | None, device: str) -> tuple[int, int]:
    """How many processes at a time, and threads of each.

    Args:
        jobs: how many are asked for. None: on a CPU one for each core, on a GPU one.
        device: the type of the PyTorch device, such as ``"cpu"``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    jobs = jobs or (cores if device == "cpu" else 1)
    return jobs, max(1, cores // jobs)


def read_json(path: Path) -> Any:
    """None where the file is not there, or was cut off by a kill."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def epochs_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's epochs.csv; none where there is no such file yet."""
    try:
        with (folder / "epochs.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def is_finished(task: Task) -> bool:
    """Whether a process has ended well with these arguments and inputs, and its checkpoint is the
    one that it left."""
    return task.checkpoint.exists() and read_json(_mark(task)) == _what_finished(task)


def _mark(task: Task) -> Path:
    return task.folder / "finished.json"


def _what_finished(task: Task) -> dict[str, Any]:
    digests = []
    for path in (*task.inputs, task.checkpoint):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return {"command": [task.script, *task.arguments], "sha256": digests}


def _start(task: Task, threads: int) -> subprocess.Popen[bytes]:
    task.folder.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPTS / task.script), *task.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )


def run_all(
    tasks: Sequence[Task], jobs: int, threads: int, on_end: Callable[[Task], None]
) -> list[Failure]:
    """Runs what is not finished; a line says how far it is.

    A run in whose folder another process trains, such as one that a killed call of this has left,
    is waited for, and counts as one of ``jobs``: two processes never write to one folder.

    Args:
        tasks: started in this order, each in a folder of its own.
        jobs: processes at a time.
        threads: of each process, as OMP_NUM_THREADS.
        on_end: called with each task that has ended well, while the others go on. A ValueError is
            the task's failure.

    Returns:
        The failures. The other tasks are finished.
    """
    waiting = [task for task in tasks if not is_finished(task)]
    running: dict[Task, subprocess.Popen[bytes]] = {}
    failures: list[Failure] = []
    progress = _Progress(tasks, waiting)
    # A request to end is an exception, as Ctrl-C is: the processes end with this one.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while waiting or running:
            ended = [task for task, process in running.items() if process.poll() is not None]
            statuses = {task: running.pop(task).returncode for task in ended}
            free = [task for task in waiting if not lock.held_by_another(task.folder)]
            others = len(waiting) - len(free)
            for task in free[: max(0, jobs - len(running) - others)]:
                waiting.remove(task)
                running[task] = _start(task, threads)
            for task, status in statuses.items():
                if status == lock.HELD:  # someone has started it at the same moment
                    waiting.append(task)
                    continue
                if failure := _end(task, status, on_end):
                    failures.append(failure)
                    progress.failed(failure)
            progress.show(running, waiting, others)
            if running or others:
                time.sleep(PAUSE)
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.close()
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failures


def _end(task: Task, status: int, on_end: Callable[[Task], None]) -> Failure | None:
    """Marks a task as finished, unless its process or ``on_end`` has failed."""
    if status:
        return Failure(task, status, _last_line(task))
    try:
        on_end(task)
    except ValueError as error:
        return Failure(task, status, str(error))
    files.write_text(_mark(task), json.dumps(_what_finished(task), indent=2) + "\n")
    return None


def _last_line(task: Task) -> str:
    lines = task.log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


class _Progress:
    """One line: kept up to date on a terminal; in a file printed anew when runs have ended."""

    def __init__(self, tasks: Sequence[Task], waiting: Sequence[Task]) -> None:
        self.tasks = tasks
        self.started = time.monotonic()
        # Of the finished no file is read again.
        self.unfinished = list(waiting)
        self.before = self._epochs()
        self.ended = -1
        self.console = Console()
        self.status = self.console.status("") if self.console.is_terminal else None
        if self.status:
            self.status.start()

    def _epochs(self) -> int:
        return sum(
            min(len(epochs_of(task.folder)), task.epochs)
            + min(len(epochs_of(task.folder / "first_stage")), task.before)
            for task in self.unfinished
        )

    def show(self, running: Collection[Task], waiting: Collection[Task], others: int) -> None:
        ended = len(self.tasks) - len(running) - len(waiting)
        if self.status is None and ended == self.ended:
            return
        self.ended = ended
        epochs = self._epochs()
        left = "not known yet"
        if new := epochs - self.before:
            total = sum(task.epochs + task.before for task in self.unfinished)
            seconds = (time.monotonic() - self.started) * (total - epochs) / new
            left = str(timedelta(seconds=round(seconds)))
        line = f"{ended} of {len(self.tasks)} runs; time left: {left}"
        if running:
            line += f"; training {' and '.join(task.name for task in running)}"
        if others:
            line += f"; {others} trained by another process"
        if self.status:
            self.status.update(line)
        else:
            print(line, flush=True)

    def failed(self, failure: Failure) -> None:
        # Its epochs count no more, neither those that are there nor those that are not.
        before = self._epochs()
        self.unfinished.remove(failure.task)
        self.before -= before - self._epochs()
        line = f"failed: {failure}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.status:
            self.status.stop()
