"""One case, from agreement to figures."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.cases.agreement import Errors, agreement
from benchmarks.cases.inputs import Batch, State, draw
from benchmarks.cases.sizes import Case
from benchmarks.implementations import implementations
from benchmarks.implementations.fifo import Fused
from benchmarks.implementations.step import Step
from benchmarks.measuring import cuda, hardware
from benchmarks.measuring.clocks import (
    LIMIT_SECONDS,
    Spread,
    float32_matmul_precision,
    in_blocks,
    interleaved,
    median_ratio,
    wall_time,
)
from benchmarks.measuring.memory import CLEAR_REFS, isolated, peak_extra_memory
from benchmarks.measuring.outcomes import failure, first_line
from benchmarks.measuring.parts import STEP, calls_of, parts_of, timer_of
from benchmarks.measuring.turns import turns, with_twins

#: One figure of one implementation on one case, flat, as a record has it. Beside the case's fields:
#: figure, implementation, median, p20 and p80 (seconds), rounds, times_ours (how many times as long
#: as this package it takes, median over the rounds); of a step extra_bytes, the errors and copies
#: of the memory; without figures outcome and reason.
Row = dict[str, Any]

#: A step in the replay of a CUDA graph, by the device's clock.
GRAPH = "step in a graph"
#: Of the parts of a step, which are not what a training script waits for.
PART_ROUNDS = 5


@dataclass
class Ready:
    """Steps of one implementation that agree with the reference, and the graph of their turns."""

    steps: Sequence[Step]
    errors: Errors
    calls: Sequence[Callable[[], object]]
    graph: torch.cuda.CUDAGraph | None = None
    not_captured: str | None = None


class Guard:
    """Times what is ready; an implementation that fails meanwhile is out from then on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.failures: dict[str, Exception] = {}

    def timer(self, name: str, timer: Callable[..., float]) -> Callable[..., float]:
        def timed(*times: int) -> float:
            try:
                return math.inf if name in self.failures else timer(*times)
            except Exception as error:  # for want of memory, which others had left at the check
                self.failures[name] = error
                return math.inf

        return timed

    def rows(
        self, timers: Mapping[tuple[str, str], Callable[[], float]], **limits: Any
    ) -> Iterator[Row]:
        """By figure and implementation."""
        times = interleaved(timers, self.seconds, **limits)
        for (figure, name), taken in times.items():
            if name not in self.failures:
                yield {"figure": figure, "implementation": name} | timing(
                    taken, times.get((figure, Fused.name))
                )


def timing(times: list[float], ours: list[float] | None = None) -> Row:
    """A row's fields; with the times of this package in the same rounds also the ratio to it."""
    ratio = {"times_ours": median_ratio(times, ours)} if ours and math.isfinite(sum(ours)) else {}
    return {**asdict(Spread.of(times)), "rounds": len(times)} | ratio


def run_case(
    case: Case,
    seconds: float,
    device: torch.device | str = "cpu",
    memory: bool = True,
    without: Collection[type[Step]] = (),
) -> list[Row]:
    """Checks, then times, every implementation that runs on ``device``.

    One that fails or disagrees with the reference is not timed, and its row says why.

    Args:
        case: the size.
        seconds: how long to time, all implementations together; at least seven rounds, or three
            where these take long. On a GPU once by the host's clock and once by the device's. The
            parts half as long; at least five rounds, or three.
        device: where the tensors are.
        memory: whether to measure peak memory too, on a CPU in a new process for each.
        without: implementations to leave out.
    """
    device = torch.device(device)
    with float32_matmul_precision(case.matmul_precision):
        state, batches = draw(case, device)
        judge = agreement(case, state, batches[0])
        kinds = [kind for kind in implementations(case, device) if kind not in without]
        ready: dict[str, Ready] = {}
        guard = Guard(seconds)
        for kind in kinds:
            try:
                ready[kind.name] = _prepare(kind, case, judge, state, batches)
            except Exception as error:  # a compiler's, a library's: the others can go on
                guard.failures[kind.name] = error
        rows = [*_measure(ready, batches, device, guard)]
        for row in rows if memory else []:
            if row["figure"] == STEP:
                row |= _peak_memory(case, ready[row["implementation"]].steps[0], batches[0])
    rows += [
        {"figure": STEP, "implementation": name} | failure(error)
        for name, error in guard.failures.items()
    ]
    order = {kind.name: at for at, kind in enumerate(kinds)}
    rows.sort(key=lambda row: order[row["implementation"]])
    return [case.fields() | row for row in rows]


def _prepare(
    kind: type[Step], case: Case, judge: Any, state: State, batches: Sequence[Batch]
) -> Ready:
    step = kind(case, state)
    errors = judge.check(step)
    steps = with_twins(step, hardware.cache_bytes(batches[0][0].device))
    ready = Ready(steps, errors, turns(steps, batches))
    if step.state[0].is_cuda:
        try:
            if step.waits_for_device:
                raise RuntimeError("it waits for the device")
            ready.graph = cuda.captured(steps, ready.calls)
        except Exception as error:  # it can be timed without a graph
            ready.not_captured = first_line(error)
    return ready


def _measure(
    ready: Mapping[str, Ready], batches: Sequence[Batch], device: torch.device, guard: Guard
) -> Iterator[Row]:
    """The rows of all figures but memory."""
    timers: dict[tuple[str, str], Callable[[], float]] = {}
    for name, found in ready.items():
        if found.graph:
            timer = guard.timer(name, partial(cuda.device_time, found.graph.replay))
            timers[GRAPH, name] = in_blocks(timer, device)
    for row in guard.rows(timers):
        count = len(ready[row["implementation"]].calls)
        yield row | {key: row[key] / count for key in ("median", "p20", "p80")}
    timers = {}
    for name, found in ready.items():
        found.graph = None  # which holds memory that others may need
        call = calls_of(STEP, found.steps, batches)
        timer = guard.timer(name, partial(wall_time, call, device))
        timers[STEP, name] = in_blocks(timer, device)
    for row in guard.rows(timers, warm_up=1):
        found = ready[row["implementation"]]
        errors = {f"{key}_error": error for key, error in found.errors.items()}
        yield row | errors | {"copies": len(found.steps), "not_captured": found.not_captured}
    timers = {}
    for name, found in ready.items():
        for part in parts_of(type(found.steps[0])):
            make = partial(timer_of, part, found.steps, batches, device)
            timers[part, name] = guard.timer(name, _made_at_first_use(make))
    guard.seconds /= 2
    # Each has run before, as part of a step.
    yield from guard.rows(timers, min_rounds=PART_ROUNDS, warm_up=0, limit=LIMIT_SECONDS / 2)


def _made_at_first_use(make: Callable[[], Callable[[], float]]) -> Callable[[], float]:
    """The timer that ``make`` returns, which may fail as it is made."""
    made: list[Callable[[], float]] = []

    def timer() -> float:
        if not made:
            made.append(make())
        return made[0]()

    return timer


def _peak_memory(case: Case, step: Step, batch: Batch) -> Row:
    """``extra_bytes`` of a step beside its inputs, or ``no_memory``, why there are none."""
    if step.state[0].is_cuda:
        try:
            return {"extra_bytes": cuda.peak_extra_memory(partial(step, *batch))}
        except Exception as error:  # for want of memory, beside the others' copies
            return {"no_memory": first_line(error)}
    if not CLEAR_REFS.exists():
        return {"no_memory": "the system does not count it"}
    [found] = isolated(step_peak_memory, case, type(step))
    return found if "extra_bytes" in found else {"no_memory": "{outcome}: {reason}".format(**found)}


def step_peak_memory(case: Case, kind: type[Step]) -> Iterator[Row]:
    """Of a step on the CPU, after a first one that makes or compiles what is made only once."""
    state, [batch] = draw(case, torch.device("cpu"), sets=1)
    call = partial(kind(case, state), *batch)
    call()
    yield {"extra_bytes": peak_extra_memory(call)}
