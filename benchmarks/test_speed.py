"""Forward, backward, whole step and enqueue, one by one, with pytest-benchmark.

    pytest benchmarks -k "float32-64x16384" --benchmark-columns=median,iqr,rounds

Every case of every device here, for each implementation that has just agreed with the reference; of
a test's name the parts are device, case, implementation and part. ``extra_info`` has the 20th and
80th percentile in seconds, the peak of extra memory in bytes and the errors. pytest-benchmark's own
options say how long each is timed, save and compare.

In rrd_kernels the gradient is computed in forward. SDPA is not differentiated by autograd, so it
has no halves.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch

from benchmarks import cuda, hardware
from benchmarks.agreement import Agreed, Check, agreed, agreement
from benchmarks.cases import AnyCase, cases_for
from benchmarks.implementations import implementations
from benchmarks.inputs import Batch, State, draw
from benchmarks.measure import (
    CLEAR_REFS,
    WARM_UP_ROUNDS,
    Spread,
    first_line,
    float32_matmul_precision,
    peak_extra_memory,
    ran_out_of_memory,
    wait_for,
    wall_time,
)
from benchmarks.step import Step
from benchmarks.step_parts import BACKWARD, FORWARD, Graph, forwards, graphs, parts_of, writes
from benchmarks.turns import one_by_one, turns

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
STEP = "step"


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
                if kind.why_not(case):
                    continue
                for part in (STEP, *parts_of(kind)):
                    words = (device.type, case.name.replace("×", "x"), kind.name)
                    group = " ".join((*words[:2], part))
                    marks = pytest.mark.benchmark(group=group, timer=clock(device))
                    name = "-".join((*words, part)).replace(" ", "-").replace("=", "")
                    yield pytest.param(device, case, kind, part, marks=marks, id=name)


@dataclass(frozen=True)
class Prepared:
    """A case's tensors and what compares its implementations."""

    state: State
    batches: list[Batch]
    judge: Check


@functools.lru_cache(maxsize=1)
def prepared(case: AnyCase, device: torch.device) -> Prepared:
    """With the published code checked, which is the measure for the others."""
    state, batches = draw(case, device)
    judge = agreement(case, state, batches[0])
    published, *_ = implementations(case, device)
    try:
        judge.check(published(case, state))
    except Exception as error:  # then the others may err by what it may
        if not ran_out_of_memory(error):
            raise
    return Prepared(state, list(batches), judge)


@functools.lru_cache(maxsize=1)
def agreeing(case: AnyCase, device: torch.device, kind: type[Step]) -> Agreed:
    """Steps that have agreed with the reference, in their writes too."""
    ready = prepared(case, device)
    try:
        return agreed(kind(case, ready.state), ready.judge, hardware.cache_bytes(device))
    except ArithmeticError:
        raise
    except Exception as error:  # a compiler's, a library's that has no kernel here
        pytest.skip(first_line(error))


@pytest.mark.parametrize(("device", "case", "kind", "part"), list(every_part()))
def test_speed(
    device: torch.device,
    case: AnyCase,
    kind: type[Step],
    part: str,
    benchmark: Any,
    request: pytest.FixtureRequest,
) -> None:
    with float32_matmul_precision(case.matmul_precision):
        steps, found, written = agreeing(case, device, kind)
        errors = {**asdict(found), "written": written} if found else {}
        batches = prepared(case, device).batches
        call: Callable[[], object]
        if part == BACKWARD:
            make = graphs(steps, batches)
            call = _time_backward(benchmark, make, device, request.config.getoption)
        else:
            call = _calls(part, steps, batches)
            benchmark(call)
        extra = _extra_memory(call, device)
    benchmark.extra_info |= {"errors": errors, "extra_bytes": extra, "copies": len(steps)}
    if benchmark.stats:  # not with --benchmark-disable
        spread = Spread.of(benchmark.stats.stats.data)
        benchmark.extra_info |= {"p20": spread.p20, "p80": spread.p80}


def _calls(part: str, steps: Sequence[Step], batches: Sequence[Batch]) -> Callable[[], object]:
    if part == STEP:
        return one_by_one(turns(steps, batches))
    return forwards(steps, batches) if part == FORWARD else writes(steps, batches)


def _time_backward(
    benchmark: Any,
    make: Callable[[], Graph],
    device: torch.device,
    option: Callable[[str], Any],
) -> Callable[[], object]:
    """Of a graph that is made anew, untimed, for each round."""
    # As many rounds as pytest-benchmark would take of a step, of which backward is a part.
    taken = wall_time(make().backward, device)
    rounds = max(option("benchmark_min_rounds"), int(float(option("benchmark_max_time")) / taken))
    benchmark.pedantic(
        Graph.backward,
        setup=lambda: ((make(),), {}),
        rounds=rounds,
        warmup_rounds=WARM_UP_ROUNDS,
    )
    return make().backward


def _extra_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Of one more call; ``None`` where the system does not count it."""
    if device.type == "cuda":
        return cuda.peak_extra_memory(call)
    return peak_extra_memory(call) if CLEAR_REFS.exists() else None
