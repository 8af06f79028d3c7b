"""Steps in a process where nothing else has allocated.

``python -m benchmarks.isolated IMPLEMENTATION CASE``, the case as JSON, prints the bytes that one
step takes beside its inputs.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import IO

import torch

from benchmarks.cases import AnyCase, from_fields
from benchmarks.implementations import implementations
from benchmarks.inputs import draw
from benchmarks.measure import CLEAR_REFS, peak_extra_memory
from benchmarks.paths import ROOT
from benchmarks.step import Step


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


def isolated_peak_memory(case: AnyCase, implementation: type[Step]) -> int | None:
    """Bytes, on the CPU; ``None`` where the system does not count them."""
    if not CLEAR_REFS.exists():
        return None
    arguments = (implementation.name, json.dumps(asdict(case)))
    with module_output("benchmarks.isolated", *arguments) as (output, process):
        printed = output.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return int(printed)


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


if __name__ == "__main__":
    name, case_json = sys.argv[1:]
    case = from_fields(json.loads(case_json))
    print(step_peak_memory(case, named(name, case)))
