"""Whole steps of every case here with pytest-benchmark, of what has just agreed with the reference:
pytest benchmarks -k "float32-64x16384" --benchmark-columns=median,iqr,rounds."""

from typing import Any

import pytest
import torch

from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import CASES, CRD, FAMILY, Case
from benchmarks.implementations import implementations
from benchmarks.implementations.step import Step
from benchmarks.measuring import clocks, hardware
from benchmarks.measuring.agreement import Agreement

NAMES = str.maketrans(" ×", "-x")  # as pytest can select them
STEPS = [
    pytest.param(device, case, kind, id=f"{device}-{case.name}-{kind.name}".translate(NAMES))
    for device in map(torch.device, ["cpu", "cuda"][: 1 + torch.cuda.is_available()])
    for case in (*CASES[device.type], *FAMILY[device.type], *CRD[device.type])
    for kind in implementations(case, device)
]


@pytest.mark.parametrize(("device", "case", "kind"), STEPS)
def test_step(device: torch.device, case: Case, kind: type[Step], benchmark: Any) -> None:
    benchmark.group = f"{device} {case.name}"
    with clocks.products_in(case.format):
        state, batches = draw(case, device, sets=1)
        step = kind(case, state)
        Agreement(step.case, state, batches[0]).check(step)
        twins = clocks.with_twins(step, hardware.cache_bytes(device))
        benchmark(clocks.wall_time, clocks.one_by_one(clocks.turns(twins, batches)), device)
