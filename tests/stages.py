"""Runs commands one after another, each within a time limit, and keeps what came of them."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

#: Between the request to stop and the end: pytest and the benchmark write what they have.
GRACE_SECONDS = 10.0
#: How often it is read what a stage has found so far.
INTERVAL = 5.0
#: Before it is told to, a stage that knows of its limit is done: it has started and writes.
MARGIN = 10.0
#: Of the output, in characters.
TAIL = 4000

Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        name: for people, and as a key.
        command: with its arguments.
        least: seconds that the stages before it leave to it.
        timed: whether it takes ``--within SECONDS``, after which it begins nothing more.
        environment: variables beside those of this process.
        read: takes the output and returns what else is to be known, perhaps another "status". It is
            called as the command runs, too.
        skip: why it is not run, if it is not.
        instead: the stage that must have failed before, if there is one.
    """

    name: str
    command: Sequence[str]
    least: float = 0.0
    timed: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[str], Result] = lambda output: {}
    skip: str | None = None
    instead: str | None = None


def run(
    stage: Stage, folder: Path, seconds: float, report: Callable[[Result], object] = lambda _: None
) -> Result:
    """What came of ``stage``, ready for JSON.

    Args:
        stage: what to run.
        folder: where.
        seconds: its time limit.
        report: is given what there is every few seconds, since all of this may be killed.
    """
    if stage.skip:
        return {"status": "skipped", "reason": stage.skip}
    if seconds <= 0:
        return {"status": "timed out", "reason": "no time was left"}
    started = time.monotonic()
    # A file, not a pipe: a grandchild that outlives the command would keep a pipe open.
    with tempfile.NamedTemporaryFile("w") as log:

        def result(status: str, exit_code: int | None = None) -> Result:
            # Opened anew: the command's own place in the file is not to move.
            output = Path(log.name).read_text(errors="replace")
            found = {
                "status": status,
                "seconds": round(time.monotonic() - started, 1),
                "exit_code": exit_code,
                "output_tail": output[-TAIL:],
            }
            try:
                return found | stage.read(output)
            except Exception as error:  # the stages after this one are to be run all the same
                return found | {"status": "failed", "reason": f"results not readable: {error!r}"}

        def look() -> None:
            report(result("running"))

        return result(*_run(stage, folder, seconds, log, look))


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(
    stage: Stage, folder: Path, limit: float, log: IO[str], look: Callable[[], None]
) -> tuple[str, int | None]:
    """Status and exit code."""
    until = time.monotonic() + limit
    timed = ["--within", f"{max(1.0, limit - MARGIN):.0f}"] if stage.timed else []
    try:
        process = subprocess.Popen(
            [*stage.command, *timed],
            cwd=folder,
            env=os.environ | stage.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # A shell's background jobs ignore SIGINT, and what ignores it passes that on.
            preexec_fn=_hear_interrupts,
        )
    except OSError as error:
        log.write(str(error))
        log.flush()
        return "failed", None
    try:
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                exit_code = process.wait(min(INTERVAL, left))
                return ("passed" if exit_code == 0 else "failed"), exit_code
            look()
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        return "timed out", _end(process)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends what is left of the process and of its children; the exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
