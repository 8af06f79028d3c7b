"""Whole steps with pytest-benchmark, whose options say how long each is timed, save and compare.

    pytest benchmarks -k "float32-64x16384" --benchmark-columns=median,iqr,rounds

Every case of every device here, for each implementation that has just agreed with the reference;
and the draws that the momentum memory needs. The parts of a step are measured by
``python -m benchmarks.report``.
"""

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cases.agreement import Agreement, agreement
from benchmarks.cases.inputs import CLASSES, Batch, State, draw
from benchmarks.cases.sizes import MOMENTUM_CASES, Case, cases_for
from benchmarks.implementations import implementations
from benchmarks.implementations.step import Step
from benchmarks.measuring.clocks import float32_matmul_precision, wait_for
from benchmarks.measuring.hardware import cache_bytes
from benchmarks.measuring.turns import with_twins
from rrd_kernels import ContrastSampler

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
#: As pytest can select them.
NAMES = str.maketrans(" ×", "-x")
STEPS = [
    pytest.param(device, case, kind, id=f"{device}-{case.name}-{kind.name}".translate(NAMES))
    for device in map(torch.device, DEVICES)
    for case in cases_for(device)
    for kind in implementations(case, device)
]


@functools.lru_cache(maxsize=1)
def drawn(case: Case, device: torch.device) -> tuple[State, Batch, Agreement]:
    state, [batch] = draw(case, device, sets=1)
    return state, batch, agreement(case, state, batch)


@pytest.mark.parametrize(("device", "case", "kind"), STEPS)
def test_step(device: torch.device, case: Case, kind: type[Step], benchmark: Any) -> None:
    benchmark.group = f"{device} {case.name}"
    with float32_matmul_precision(case.matmul_precision):
        state, batch, judge = drawn(case, device)
        step = kind(case, state)
        judge.check(step)
        turns = itertools.cycle(with_twins(step, cache_bytes(device)))

        def call() -> None:
            next(turns)(*batch)
            wait_for(device)

        benchmark(call)


@pytest.mark.parametrize("name", ["published", "rrd_kernels"])
@pytest.mark.benchmark(group="rows of other classes for the momentum memory")
def test_draws(name: str, benchmark: Any) -> None:
    """For each sample of a batch itself and K distinct ones of other classes, on the host."""
    case = MOMENTUM_CASES[0]
    labels = torch.randint(CLASSES, (case.n_data,))
    idx = torch.randperm(case.n_data)[: case.batch]
    targets = labels.tolist()
    negatives = [(labels != label).nonzero()[:, 0].numpy() for label in range(CLASSES)]

    def published() -> torch.Tensor:
        """What its data set does for each sample, in one process, and the stacking."""
        columns = []
        for sample in idx.tolist():
            drawn = np.random.choice(negatives[targets[sample]], case.rows, replace=False)
            columns.append(torch.from_numpy(np.hstack(([sample], drawn))))
        return torch.stack(columns)

    sampler = ContrastSampler(labels, case.rows)
    call = published if name == "published" else functools.partial(sampler, idx)
    own, drawn = call()[:, 0], call()[:, 1:]
    assert torch.equal(own, idx)
    assert (labels[drawn] != labels[idx, None]).all()
    assert (drawn.sort(dim=1).values.diff(dim=1) > 0).all()
    benchmark(call)
