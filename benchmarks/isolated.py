"""Peak extra memory of one step, in a process where nothing else has allocated.

``python -m benchmarks.isolated IMPLEMENTATION CASE``, the case as JSON, prints the bytes.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.cases import Case, draw
from benchmarks.measure import CLEAR_REFS, peak_extra_memory
from benchmarks.peers import implementations
from benchmarks.step import Step


def isolated_peak_memory(case: Case, implementation: type[Step]) -> int | None:
    """Bytes, on the CPU; ``None`` where the system does not count them."""
    if not CLEAR_REFS.exists():
        return None
    arguments = [implementation.name, json.dumps(asdict(case))]
    command = [sys.executable, "-m", "benchmarks.isolated", *arguments]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def step_peak_memory(case: Case, implementation: type[Step]) -> int:
    """Bytes, in this process, after a step on a small memory has made what is made only once."""
    memory, [embeddings] = draw(case, torch.device("cpu"), sets=1)
    implementation(memory[: 2 * case.batch], case.tau_s, case.tau_t)(*embeddings)
    step = implementation(memory, case.tau_s, case.tau_t)
    return peak_extra_memory(lambda: step(*embeddings))


if __name__ == "__main__":
    name, case_json = sys.argv[1:]
    by_name = {step.name: step for step in implementations(torch.device("cpu"))}
    print(step_peak_memory(Case(**json.loads(case_json)), by_name[name]))
