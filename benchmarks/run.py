"""One case, from agreement to figures."""

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks import cuda, hardware, step_parts
from benchmarks.agreement import Check, agreed, agreement
from benchmarks.cases import AnyCase, Case
from benchmarks.errors import Errors
from benchmarks.implementations import implementations
from benchmarks.inputs import Batch, State, draw
from benchmarks.isolated import PeakMemory, isolated_peak_memory
from benchmarks.measure import (
    NOT_MEASURED,
    Spread,
    calls_in_a_block,
    first_line,
    float32_matmul_precision,
    interleaved,
    outcome_of,
    wall_time,
)
from benchmarks.step import AutogradStep, Step
from benchmarks.turns import one_by_one, turns
from benchmarks.work import Work, of_part

Times = TypeVar("Times")

#: Of the parts of a step, which are not what a training script waits for.
PART_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of a step."""

    seconds: Spread
    rounds: int
    #: How many times faster than each implementation: the median over the rounds.
    speedup: Mapping[str, float]


@dataclass(frozen=True)
class PartTiming(Timing):
    """Seconds of one part of a step, and what it takes at least."""

    work: Work


@dataclass(frozen=True)
class Row:
    """One implementation on one case."""

    case: AnyCase
    implementation: str
    #: By the host's clock, as a training loop sees it.
    seconds: Spread
    rounds: int
    speedup: Mapping[str, float]
    #: ``None`` where it was not measured ...
    extra_bytes: int | None
    #: ``None`` of draws, which are right or wrong.
    errors: Errors | None
    #: Of the memory, that took turns.
    copies: int = 1
    #: By the device's clock in the replay of a CUDA graph; ``None`` where there is none.
    replay: Timing | None = None
    #: Why a GPU has no replay.
    not_captured: str | None = None
    #: ... and why, if it was to be.
    no_memory: str | None = None
    #: Of those parts that can be called alone, by the host's clock.
    parts: Mapping[str, PartTiming] = field(default_factory=dict)

    @property
    def best_seconds(self) -> float:
        """Those in a graph, where there is one."""
        return (self.replay.seconds if self.replay else self.seconds).median

    @property
    def rate(self) -> float | None:
        """Operations per second, counted alike for all implementations; draws have none."""
        return self.case.operations / self.best_seconds if self.case.operations else None


@dataclass(frozen=True)
class Absent:
    """One implementation that has no figures on one case."""

    case: AnyCase
    implementation: str
    #: A few words: not measured, not available, out of memory, disagrees.
    outcome: str
    reason: str


Result = Row | Absent


@dataclass(frozen=True)
class Ready:
    """A step that agrees with the reference, its calls in turn, and the graph of all these."""

    steps: Sequence[Step]
    calls: Sequence[Callable[[], object]]
    errors: Errors | None
    graph: torch.cuda.CUDAGraph | None
    not_captured: str | None


class StepError(Exception):
    """A step that agreed with the reference and failed when it was timed; its cause says why."""

    def __init__(self, implementation: str) -> None:
        super().__init__(implementation)
        self.implementation = implementation


def run_case(
    case: AnyCase,
    seconds: float,
    device: torch.device | str = "cpu",
    memory: bool = True,
    without: Collection[type[Step]] = (),
) -> list[Result]:
    """Checks, then times, every implementation that runs on ``device``.

    One that fails or disagrees with the reference is not timed, and the result says why.

    Args:
        case: the size.
        seconds: how long to time, all implementations together; at least seven rounds. On a GPU
            once by the host's clock and once by the device's. The parts half as long; at least
            five rounds.
        device: where the tensors are.
        memory: whether to measure peak memory too, on a CPU in a new process for each.
        without: implementations to leave out.
    """
    device = torch.device(device)
    with float32_matmul_precision(case.matmul_precision):
        state, batches = draw(case, device)
        judge = agreement(case, state, batches[0])
        prepared = {
            kind.name: _prepare(kind, case, judge, state, batches)
            for kind in implementations(case, device)
            if kind not in without
        }
        replays = _of_those_that_run(prepared, case, partial(_replay_times, seconds=seconds))
        for name, found in prepared.items():
            if isinstance(found, Ready):  # whose graph holds memory that others may need
                prepared[name] = replace(found, graph=None)
        walls = _of_those_that_run(
            prepared, case, partial(_wall_times, device=device, seconds=seconds)
        )
        parts = _of_those_that_run(
            prepared,
            case,
            partial(_part_times, batches=batches, device=device, seconds=seconds / 2),
        )
        results: list[Result] = []
        for name, found in prepared.items():
            if isinstance(found, Absent):
                results.append(found)
                continue
            wall = _timing(name, walls)
            peak = _peak_memory(case, found, batches[0]) if memory else PeakMemory(None)
            row = Row(
                case=case,
                implementation=name,
                seconds=wall.seconds,
                rounds=wall.rounds,
                speedup=wall.speedup,
                extra_bytes=peak.extra_bytes,
                no_memory=peak.outcome,
                parts=_part_timings(case, found.steps[0], parts),
                errors=found.errors,
                copies=len(found.steps),
                replay=_timing(name, replays) if name in replays else None,
                not_captured=found.not_captured,
            )
            results.append(row)
        return results


def _prepare(
    kind: type[Step], case: AnyCase, judge: Check, state: State, batches: Sequence[Batch]
) -> Ready | Absent:
    if reason := kind.why_not(case):
        return Absent(case, kind.name, NOT_MEASURED, reason)
    try:
        step = kind(case, state)
        steps, errors, _ = agreed(step, judge, hardware.cache_bytes(batches[0][0].device))
    except Exception as error:  # a compiler's, a library's: the others can be measured still
        return Absent(case, kind.name, outcome_of(error), first_line(error))
    calls = turns(steps, batches)
    graph, not_captured = None, None
    if _on_gpu(step) and step.waits_for_device:
        not_captured = "it waits for the device"
    elif _on_gpu(step):
        try:
            graph = captured(steps, calls)
        except Exception as error:  # as above; it can be timed without a graph
            not_captured = first_line(error)
    return Ready(steps, calls, errors, graph, not_captured)


def _on_gpu(step: Step) -> bool:
    return step.state[0].is_cuda


def captured(steps: Sequence[Step], calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """A graph of all ``calls``, replayed once to see that it is they that it holds."""
    graph, outputs = cuda.capture(calls)
    loss, grad = outputs[-1]
    loss.fill_(torch.nan)
    grad.fill_(torch.nan)
    states = [tensor for step in steps for tensor in step.state]
    before = [tensor.clone() for tensor in states]
    graph.replay()
    replayed = [tensor.clone() for tensor in states]
    for tensor, value in zip(states, before, strict=True):
        tensor.copy_(value)
    for call in calls:
        call()
    same = all(map(torch.equal, states, replayed))
    if not same or not (loss.isfinite() & grad.isfinite().all()):
        raise RuntimeError("the replay does not do the steps")
    return graph


def _of_those_that_run(
    prepared: dict[str, Ready | Absent],
    case: AnyCase,
    measure: Callable[[Mapping[str, Ready]], Times],
) -> Times:
    """What ``measure`` finds of those that are ready; one that fails is absent from then on."""
    while True:
        try:
            return measure({n: found for n, found in prepared.items() if isinstance(found, Ready)})
        except StepError as failed:
            name, cause = failed.implementation, failed.__cause__
            assert cause is not None
            prepared[name] = Absent(case, name, outcome_of(cause), first_line(cause))


def _of_step(implementation: str, timer: Callable[..., float]) -> Callable[..., float]:
    """``timer``, whose errors say whose they are."""

    def timed(*arguments: Any) -> float:
        try:
            return timer(*arguments)
        except Exception as error:  # for want of memory, which others had left at the check
            raise StepError(implementation) from error

    return timed


def _wall_times(
    ready: Mapping[str, Ready], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    timers = {}
    for name, found in ready.items():
        timer = _of_step(name, partial(wall_time, one_by_one(found.calls), device))
        times = calls_in_a_block(timer) if device.type == "cuda" else 1
        timers[name] = partial(timer, times)
    return interleaved(timers, seconds, warm_up=1)


def _replay_times(ready: Mapping[str, Ready], seconds: float) -> dict[str, list[float]]:
    """Of a step, in the graphs that there are."""
    timers = {}
    for name, found in ready.items():
        if found.graph:
            timer = _of_step(name, partial(cuda.device_time, found.graph.replay))
            timers[name] = partial(timer, calls_in_a_block(timer))
    times = interleaved(timers, seconds) if timers else {}
    return {
        name: [time / len(ready[name].calls) for time in taken] for name, taken in times.items()
    }


def _part_times(
    ready: Mapping[str, Ready], batches: Sequence[Batch], device: torch.device, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """By part, then by implementation."""
    timers = {}
    for name, found in ready.items():
        try:
            of_parts = step_parts.timers(found.steps, batches, device)
        except Exception as error:  # as in _of_step
            raise StepError(name) from error
        for part, timer in of_parts.items():
            timers[part, name] = _of_step(name, timer)
    times: dict[str, dict[str, list[float]]] = {}
    if timers:
        by_both = interleaved(timers, seconds, PART_ROUNDS, warm_up=1)
        for (part, name), taken in by_both.items():
            times.setdefault(part, {})[name] = taken
    return times


def _part_timings(
    case: AnyCase, step: Step, times: Mapping[str, Mapping[str, list[float]]]
) -> dict[str, PartTiming]:
    found = {}
    in_forward = isinstance(step, AutogradStep) and step.gradient_in_forward
    for part in step_parts.parts_of(type(step)):
        assert isinstance(case, Case)
        timing = _timing(step.name, times[part])
        found[part] = PartTiming(**vars(timing), work=of_part(case, part, in_forward))
    return found


def _timing(name: str, times: Mapping[str, list[float]]) -> Timing:
    own = times[name]
    speedup = {peer: median_ratio(taken, own) for peer, taken in times.items()}
    return Timing(Spread.of(own), len(own), speedup)


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def _peak_memory(case: AnyCase, found: Ready, batch: Batch) -> PeakMemory:
    [step, *_] = found.steps
    if not _on_gpu(step):
        return isolated_peak_memory(case, type(step))
    try:
        return PeakMemory(cuda.peak_extra_memory(partial(step, *batch)))
    except Exception as error:  # for want of memory, beside the others' copies
        return PeakMemory(None, f"{outcome_of(error)}: {first_line(error)}")
