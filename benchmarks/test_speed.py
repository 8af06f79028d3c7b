"""Forward, backward, whole step and enqueue, one by one, with pytest-benchmark.

    pytest benchmarks -k "float32-64x16384" --benchmark-columns=median,iqr,rounds

Every case of every device here, for each implementation that has just agreed with the reference; of
a test's name the parts are device, case, implementation and part. And the draws that the momentum
memory needs. pytest-benchmark's own options say how long each is timed, save and compare.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.cases.agreement import Agreement, agreement
from benchmarks.cases.inputs import CLASSES, Batch, State, draw
from benchmarks.cases.sizes import MOMENTUM_CASES, Case, cases_for
from benchmarks.implementations import implementations
from benchmarks.implementations.step import AutogradStep, Step
from benchmarks.measuring.clocks import float32_matmul_precision, wait_for
from benchmarks.measuring.hardware import cache_bytes
from benchmarks.measuring.turns import with_twins
from rrd_kernels import ContrastSampler

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
        pairs = (
            (case, kind) for case in cases_for(device) for kind in implementations(case, device)
        )
        for case, kind in pairs:
            halves = ("forward", "backward") if issubclass(kind, AutogradStep) else ()
            for part in ("step", *halves, kind.write_name):
                words = (device.type, case.name.replace("×", "x"), kind.name, part)
                name = "-".join(words).replace(" ", "-").replace("=", "")
                group = " ".join((*words[:2], part))
                marks = pytest.mark.benchmark(group=group, timer=clock(device))
                yield pytest.param(device, case, kind, part, marks=marks, id=name)


@functools.lru_cache(maxsize=1)
def drawn(case: Case, device: torch.device) -> tuple[State, Batch, Agreement]:
    state, [batch] = draw(case, device, sets=1)
    return state, batch, agreement(case, state, batch)


@functools.lru_cache(maxsize=1)
def agreeing(case: Case, device: torch.device, kind: type[Step]) -> Sequence[Any]:
    """The step, and others like it with which it takes turns."""
    state, _, judge = drawn(case, device)
    step = kind(case, state)
    judge.check(step)
    return with_twins(step, cache_bytes(device))


@pytest.mark.parametrize(("device", "case", "kind", "part"), list(every_part()))
def test_speed(
    device: torch.device, case: Case, kind: type[Step], part: str, benchmark: Any
) -> None:
    with float32_matmul_precision(case.matmul_precision):
        steps = agreeing(case, device, kind)
        turns = itertools.cycle(steps)
        z_s, *rest = drawn(case, device)[1]
        leaf = z_s.detach().requires_grad_()

        def graph() -> tuple[Any, Any]:
            new = z_s.detach().requires_grad_()
            return (next(turns).forward(new, *rest), new), {}

        if part == "backward":  # of a graph that is made anew, untimed, for each round
            benchmark.pedantic(steps[0].backward, setup=graph, rounds=ROUNDS)
        elif part == "forward":
            benchmark(lambda: next(turns).forward(leaf, *rest))
        elif part == "step":
            benchmark(lambda: next(turns)(z_s, *rest))
        else:
            benchmark(lambda: next(turns).write(z_s, *rest))


def published_draws(negatives: Sequence[Any], labels: list[int], idx: Tensor, size: int) -> Tensor:
    """What the published data set does for each sample, in one process, and the stacking."""
    columns = []
    for sample in idx.tolist():
        drawn = np.random.choice(negatives[labels[sample]], size, replace=False)
        columns.append(torch.from_numpy(np.hstack(([sample], drawn))))
    return torch.stack(columns)


@pytest.mark.parametrize("name", ["published", "rrd_kernels"])
@pytest.mark.benchmark(group="negatives of the momentum memory")
def test_draws(name: str, benchmark: Any) -> None:
    """Itself and K distinct samples of other classes for each of a batch, on the host."""
    case = MOMENTUM_CASES[0]
    labels = torch.randint(CLASSES, (case.n_data,))
    idx = torch.randperm(case.n_data)[: case.batch]
    if name == "rrd_kernels":
        benchmark(ContrastSampler(labels, case.rows), idx)
    else:
        negatives = [(labels != label).nonzero()[:, 0].numpy() for label in range(CLASSES)]
        benchmark(published_draws, negatives, labels.tolist(), idx, case.rows)
