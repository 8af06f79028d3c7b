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
#: Of the output, in characters.
TAIL = 4000


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        name: for people, and as a key.
        command: with its arguments.
        seconds: its time limit.
        least: of that, what the stages before it leave to it.
        environment: variables beside those of this process.
        read: takes the output and returns what else is to be known, perhaps another "status".
        skip: why it is not run, if it is not.
    """

    name: str
    command: Sequence[str]
    seconds: float
    least: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[str], dict[str, Any]] = lambda output: {}
    skip: str | None = None


def run(stage: Stage, folder: Path, seconds: float) -> dict[str, Any]:
    """What came of ``stage``, ready for JSON.

    Args:
        stage: what to run.
        folder: where.
        seconds: how much time there is, if that is less than the stage's own limit.
    """
    if stage.skip:
        return {"status": "skipped", "reason": stage.skip}
    limit = min(stage.seconds, seconds)
    if limit <= 0:
        return {"status": "timed out", "reason": "no time was left"}
    started = time.monotonic()
    # A file, not a pipe: a grandchild that outlives the command would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        status, exit_code = _run(stage, folder, limit, log)
        log.seek(0)
        output = log.read()
    result = {
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "exit_code": exit_code,
        "output_tail": output[-TAIL:],
    }
    try:
        return result | stage.read(output)
    except Exception as error:  # the stages after this one are to be run all the same
        return result | {"status": "failed", "reason": f"its results cannot be read: {error!r}"}


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(stage: Stage, folder: Path, limit: float, log: IO[str]) -> tuple[str, int | None]:
    """Status and exit code."""
    try:
        process = subprocess.Popen(
            stage.command,
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
        return "failed", None
    try:
        exit_code = process.wait(limit)
        return ("passed" if exit_code == 0 else "failed"), exit_code
    except subprocess.TimeoutExpired:
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
