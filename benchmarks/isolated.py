"""Peak extra memory of one step, in a process where nothing else has allocated.

``python -m benchmarks.isolated IMPLEMENTATION CASE``, the case as JSON, prints the bytes.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.cases import AnyCase, from_fields
from benchmarks.implementations import implementations
from benchmarks.inputs import draw
from benchmarks.measure import CLEAR_REFS, peak_extra_memory
from benchmarks.step import Step


def isolated_peak_memory(case: AnyCase, implementation: type[Step]) -> int | None:
    """Bytes, on the CPU; ``None`` where the system does not count them."""
    if not CLEAR_REFS.exists():
        return None
    arguments = [implementation.name, json.dumps(asdict(case))]
    command = [sys.executable, "-m", "benchmarks.isolated", *arguments]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def step_peak_memory(case: AnyCase, implementation: type[Step]) -> int:
    """Bytes, in this process, after a step of few rows has made what is made only once."""

    def prepared(case: AnyCase) -> Callable[[], object]:
        state, [batch] = draw(case, torch.device("cpu"), sets=1)
        return partial(implementation(case, state), *batch)

    prepared(replace(case, rows=2 * case.batch))()
    return peak_extra_memory(prepared(case))


if __name__ == "__main__":
    name, case_json = sys.argv[1:]
    case = from_fields(json.loads(case_json))
    by_name = {step.name: step for step in implementations(case, torch.device("cpu"))}
    print(step_peak_memory(case, by_name[name]))
