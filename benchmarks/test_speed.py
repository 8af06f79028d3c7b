"""Forward, backward, whole step and enqueue, one by one, with pytest-benchmark.

    pytest benchmarks -k "float32-64x16384" --benchmark-columns=median,iqr,rounds

Every case of every device here, for each implementation that has just agreed with the reference; of
a test's name the parts are device, case, implementation and part. pytest-benchmark's own options
say how long each is timed, save and compare.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from benchmarks.cases.agreement import agreement
from benchmarks.cases.inputs import Batch, State, draw
from benchmarks.cases.sizes import Case, cases_for
from benchmarks.implementations import implementations
from benchmarks.implementations.step import Step
from benchmarks.measuring import hardware
from benchmarks.measuring.clocks import float32_matmul_precision, wait_for
from benchmarks.measuring.outcomes import first_line
from benchmarks.measuring.parts import BACKWARD, STEP, Graph, calls_of, parts_of
from benchmarks.measuring.turns import with_twins

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
ROUNDS = 20


def clock(device: torch.device) -> Callable[[], float]:
    def now() -> float:
        wait_for(device)
        return time.perf_counter()

    return now


def every_part() -> Iterator[Any]:
    """One implementation's parts after another, and a case's implementations together."""
    for device in map(torch.device, DEVICES):
        for case in cases_for(device):
            for kind in implementations(case, device):
                for part in (STEP, *parts_of(kind)):
                    words = (device.type, case.name.replace("×", "x"), kind.name)
                    group = " ".join((*words[:2], part))
                    marks = pytest.mark.benchmark(group=group, timer=clock(device))
                    name = "-".join((*words, part)).replace(" ", "-").replace("=", "")
                    yield pytest.param(device, case, kind, part, marks=marks, id=name)


@functools.lru_cache(maxsize=1)
def drawn(case: Case, device: torch.device) -> tuple[State, Sequence[Batch], Any]:
    """With the published code checked, which is the measure for the others."""
    state, batches = draw(case, device)
    judge = agreement(case, state, batches[0])
    published, *_ = implementations(case, device)
    judge.check(published(case, state))
    return state, batches, judge


@functools.lru_cache(maxsize=1)
def agreeing(case: Case, device: torch.device, kind: type[Step]) -> Sequence[Step]:
    state, _, judge = drawn(case, device)
    step = kind(case, state)
    try:
        judge.check(step)
    except ArithmeticError as error:
        if kind.name == "rrd_kernels":
            raise
        pytest.skip(first_line(error))
    return with_twins(step, hardware.cache_bytes(device))


@pytest.mark.parametrize(("device", "case", "kind", "part"), list(every_part()))
def test_speed(
    device: torch.device, case: Case, kind: type[Step], part: str, benchmark: Any
) -> None:
    with float32_matmul_precision(case.matmul_precision):
        call = calls_of(part, agreeing(case, device, kind), drawn(case, device)[1])
        if part == BACKWARD:  # of a graph that is made anew, untimed, for each round
            benchmark.pedantic(Graph.backward, setup=lambda: ((call(),), {}), rounds=ROUNDS)
        else:
            benchmark(call)
