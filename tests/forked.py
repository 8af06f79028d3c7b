"""Runs functions in processes of their own, forked from one that has imported what takes long."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds that a test waits for a process. Nothing takes a tenth of it unless it hangs.
TIMEOUT = 150

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["torch", "torch.distributed.checkpoint", "torch.distributed.tensor", "rrd_kernels"]
)


@dataclass(frozen=True)
class Ended:
    """What came of a process: its exit code, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def run(
    function: Callable[..., object],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Calls a function of a module's own.

    Args:
        environment: is added to this process's; what was imported ahead has seen neither.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        out.touch(), err.touch()
        process = context.Process(
            target=_run, args=(function, arguments, os.environ | (environment or {}), out, err)
        )
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
            err.write_text(f"{err.read_text()}\nended after {TIMEOUT} seconds")
        assert process.exitcode is not None
        return Ended(process.exitcode, out.read_text(), err.read_text())


def _run(
    function: Callable[..., object],
    arguments: Sequence[Any],
    environment: Mapping[str, str],
    *output: Path,
) -> None:
    os.environ.update(environment)
    for number, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    function(*arguments)
