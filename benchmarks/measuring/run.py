"""One case, from agreement to figures."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.cases.agreement import agreement
from benchmarks.cases.inputs import Batch, draw
from benchmarks.cases.sizes import Case
from benchmarks.implementations import implementations
from benchmarks.implementations.fifo import Fused
from benchmarks.implementations.step import Step
from benchmarks.measuring import cuda, hardware
from benchmarks.measuring.clocks import (
    Spread,
    TimerError,
    float32_matmul_precision,
    in_blocks,
    interleaved,
    median_ratio,
)
from benchmarks.measuring.memory import gpu_peak_extra_memory, isolated, peak_extra_memory
from benchmarks.measuring.outcomes import failure, first_line, tried
from benchmarks.measuring.parts import STEP, parts_of, timer_of
from benchmarks.measuring.turns import turns, with_twins

#: One figure of one implementation on one case, flat, as a record has it. Beside the case's fields:
#: figure, implementation, median, p20 and p80 (seconds), rounds, times_ours (how many times as long
#: as this package it takes, median over the rounds); of a step extra_bytes, the errors and copies
#: of the memory; without figures outcome and reason.
Row = dict[str, Any]
#: A figure of an implementation.
Key = tuple[str, str]

#: A step in the replay of a CUDA graph, by the device's clock.
GRAPH = "step in a graph"


def timing(times: list[float], ours: list[float] | None = None) -> Row:
    """A row's fields; with the times of this package in the same rounds also the ratio to it."""
    ratio = {"times_ours": median_ratio(times, ours)} if ours else {}
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
        seconds: how long to time, all implementations and parts together; at least seven rounds,
            or three where these take long.
        device: where the tensors are.
        memory: whether to measure peak memory too, on a CPU in a new process for each.
        without: implementations to leave out.
    """
    device = torch.device(device)
    timers: dict[Key, Callable[[], float]] = {}
    found: dict[str, Row] = {}  # of each implementation: of its step beside times, or its failure
    steps: dict[str, Step] = {}
    with float32_matmul_precision(case.matmul_precision):
        state, batches = draw(case, device)
        judge = agreement(case, state, batches[0])
        for kind in implementations(case, device):
            if kind in without:
                continue
            try:
                step = kind(case, state)
                errors = {f"{key}_error": error for key, error in judge.check(step).items()}
                twins = with_twins(step, hardware.cache_bytes(device))
                own, about = _timers(twins, batches, device)
            except Exception as error:  # a compiler's, a library's: the others can go on
                found[kind.name] = failure(error)
                continue
            timers |= {(figure, kind.name): timer for figure, timer in own.items()}
            found[kind.name] = errors | about | {"copies": len(twins)}
            steps[kind.name] = step
        times = _times(timers, seconds, found)
        for name, step in steps.items():
            if memory and (STEP, name) in times:
                found[name] |= _peak_memory(case, step, batches[0])
    return [
        case.fields() | {"implementation": name} | row
        for name in found
        for row in _rows(name, times, found[name])
    ]


def _timers(
    steps: Sequence[Any], batches: Sequence[Batch], device: torch.device
) -> tuple[dict[str, Callable[[], float]], Row]:
    """By figure, of one implementation; and why there is none of a graph."""
    kind = type(steps[0])
    timers = {part: timer_of(part, steps, batches, device) for part in (STEP, *parts_of(kind))}
    if device.type == "cpu":
        return timers, {}
    calls = turns(steps, batches)
    try:
        if kind.waits_for_device:
            raise RuntimeError("it waits for the device")
        replay = cuda.captured(steps, calls).replay
    except Exception as error:  # it can be timed without a graph
        return timers, {"not_captured": first_line(error)}
    timer = in_blocks(partial(cuda.device_time, replay), device)
    return timers | {GRAPH: lambda: timer() / len(calls)}, {}


def _times(
    timers: dict[Key, Callable[[], float]], seconds: float, found: dict[str, Row]
) -> dict[Key, list[float]]:
    """Without the implementations that fail meanwhile, such as for memory that others hold."""
    while True:
        try:
            return interleaved(timers, seconds)
        except TimerError as error:
            failed = error.key[1]
            found[failed] = failure(error.error)
            timers = {key: timer for key, timer in timers.items() if key[1] != failed}


def _rows(name: str, times: dict[Key, list[float]], about: Row) -> Iterator[Row]:
    """Of one implementation; ``about`` goes with its step, or is all there is."""
    timed = {figure: taken for (figure, of), taken in times.items() if of == name}
    for figure, taken in timed.items():
        row = {"figure": figure} | timing(taken, times.get((figure, Fused.name)))
        yield row | about if figure == STEP else row
    if not timed:
        yield {"figure": STEP} | about


def _peak_memory(case: Case, step: Step, batch: Batch) -> Row:
    """``extra_bytes`` of a step beside its inputs, or ``no_memory``, why there are none."""
    if batch[0].is_cuda:
        row = tried(lambda: {"extra_bytes": gpu_peak_extra_memory(partial(step, *batch))})
    else:
        row = isolated(step_peak_memory, case, type(step))
    return {"no_memory": row["reason"]} if "reason" in row else row


def step_peak_memory(case: Case, kind: type[Step]) -> Row:
    """Of a step on the CPU, after a first one that makes or compiles what is made only once."""
    state, [batch] = draw(case, torch.device("cpu"), sets=1)
    call = partial(kind(case, state), *batch)
    call()
    return {"extra_bytes": peak_extra_memory(call)}
