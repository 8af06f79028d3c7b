"""The memory of a step, in a process where nothing else has allocated."""

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import IO

import torch

from benchmarks.cases import AnyCase
from benchmarks.implementations import implementations
from benchmarks.inputs import draw
from benchmarks.measure import (
    CLEAR_REFS,
    NOT_AVAILABLE,
    OUT_OF_MEMORY,
    first_line,
    outcome_of,
    peak_extra_memory,
)
from benchmarks.paths import ROOT
from benchmarks.step import Step


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of a step beside its inputs, or a few words on why there are none."""

    extra_bytes: int | None
    outcome: str | None = None


@contextmanager
def module_output(module: str, *arguments: str) -> Iterator[tuple[IO[str], subprocess.Popen[str]]]:
    """What ``python -m module arguments`` prints, as it is printed, and the process."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout, process
        except BaseException:  # an interrupt too: nothing is left running
            process.kill()
            raise


def isolated_peak_memory(case: AnyCase, implementation: type[Step]) -> PeakMemory:
    """On the CPU; a process that fails or is ended is an outcome."""
    if not CLEAR_REFS.exists():
        return PeakMemory(None, "the system does not count it")
    # Each is forked from one that has imported all of this and done nothing yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._inductor.compile_fx"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, case, implementation), daemon=True)
    process.start()
    sender.close()
    try:
        found: PeakMemory | None = receiver.recv()
    except EOFError:
        found = None
    except BaseException:  # an interrupt: nothing is left running
        process.kill()
        raise
    process.join()
    assert process.exitcode is not None
    return found or PeakMemory(None, ": ".join(fatal(process.exitcode)))


def fatal(exit_code: int) -> tuple[str, str]:
    """Outcome and reason of a process that ended before it could say anything."""
    if exit_code == -signal.SIGKILL:
        return OUT_OF_MEMORY, "the system ended the process"
    return NOT_AVAILABLE, f"its process ended with {exit_code}"


def _send(sender: Connection, case: AnyCase, implementation: type[Step]) -> None:
    try:
        found = PeakMemory(step_peak_memory(case, implementation))
    except Exception as error:  # the library's; the others can be measured still
        found = PeakMemory(None, f"{outcome_of(error)}: {first_line(error)}")
    sender.send(found)


def step_peak_memory(case: AnyCase, implementation: type[Step]) -> int:
    """Bytes, in this process, after a first step has made or compiled what is made only once."""
    state, [batch] = draw(case, torch.device("cpu"), sets=1)
    call = partial(implementation(case, state), *batch)
    call()
    return peak_extra_memory(call)


def named(implementation: str, case: AnyCase) -> type[Step]:
    """That implementation, on the CPU."""
    by_name = {kind.name: kind for kind in implementations(case, torch.device("cpu"))}
    return by_name[implementation]
