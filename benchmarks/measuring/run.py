"""One case, from agreement to figures."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.cases.agreement import agreement
from benchmarks.cases.inputs import Batch, draw
from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import Fused
from benchmarks.implementations.step import Step
from benchmarks.measuring import clocks, cuda, hardware
from benchmarks.measuring.memory import isolated, peak_extra_memory
from benchmarks.measuring.outcomes import failure, first_line, tried
from benchmarks.measuring.turns import one_by_one, turns, with_twins

#: One figure of one implementation on one case, flat, as a record has it. Beside the case's fields:
#: figure, implementation, median, p20 and p80 (seconds), rounds, times_ours (how many times as long
#: as this package it takes, median over the rounds); of a step extra_bytes, the errors and copies
#: of the memory; without figures outcome and reason.
Row = dict[str, Any]
#: A figure of an implementation.
Key = tuple[str, str]

#: By the host's clock; and in the replay of a CUDA graph, by the device's.
STEP, GRAPH = "step", "step in a graph"


def timing(times: list[float], ours: list[float] | None = None) -> Row:
    """A row's fields; with the times of this package in the same rounds also the ratio to it."""
    ratio = {"times_ours": clocks.median_ratio(times, ours)} if ours else {}
    return {**clocks.spread(times), "rounds": len(times)} | ratio


def agreeing(
    kinds: Iterable[type[Step]], case: Case, device: torch.device
) -> tuple[Sequence[Batch], dict[str, list[Any]], dict[str, Row]]:
    """Batches; of each implementation as many steps as are to take turns; and of each what its
    row says beside times, or how it failed."""
    state, batches = draw(case, device)
    judge = agreement(case, state, batches[0])
    steps: dict[str, list[Any]] = {}
    about: dict[str, Row] = {}
    for kind in kinds:
        try:
            step = kind(case, state)
            errors = {f"{name}_error": error for name, error in judge.check(step).items()}
            steps[kind.name] = with_twins(step, hardware.cache_bytes(device))
            about[kind.name] = errors | {"copies": len(steps[kind.name])}
        except Exception as error:  # a compiler's, a library's: the others can go on
            about[kind.name] = failure(error)
    return batches, steps, about


def run_case(
    case: Case,
    kinds: Iterable[type[Step]],
    seconds: float,
    device: torch.device | str = "cpu",
    memory: bool = True,
    ours: str = Fused.name,
) -> list[Row]:
    """Checks, then times, implementations of a step; one that fails or disagrees with the reference
    is not timed, and its row says why.

    Args:
        case: the size.
        kinds: the implementations.
        seconds: how long to time, all together; at least seven rounds, or three where these take
            long.
        device: where the tensors are.
        memory: whether to measure peak memory too, on a CPU in a new process for each.
        ours: the name of the one that the others' ratios are to.
    """
    device = torch.device(device)
    timers: dict[Key, Callable[[], float]] = {}
    with clocks.float32_matmul_precision(case.matmul_precision):
        batches, steps, about = agreeing(kinds, case, device)
        for name, twins in steps.items():
            calls = turns(twins, batches)
            timers[STEP, name] = clocks.host_timer(one_by_one(calls), device)
            if device.type == "cuda":
                try:
                    timers[GRAPH, name] = _replay_timer(twins, calls, device)
                except Exception as error:  # it can be timed without a graph
                    about[name]["not_captured"] = first_line(error)
        times = _times(timers, steps, seconds, about)
        for name, twins in steps.items() if memory else ():
            about[name] |= _peak_memory(case, twins[0], batches[0])
    rows = {(STEP, name): row for name, row in about.items()}
    for (figure, name), taken in times.items():
        row = rows.setdefault((figure, name), {})
        row |= timing(taken, times.get((figure, ours)))
    return [
        case.fields() | {"figure": figure, "implementation": name} | row
        for (figure, name), row in rows.items()
    ]


def _replay_timer(
    steps: Sequence[Any], calls: Sequence[Callable[[], Any]], device: torch.device
) -> Callable[[], float]:
    """Seconds of a step by the device's clock."""
    timer = clocks.in_blocks(partial(cuda.device_time, cuda.captured(steps, calls).replay), device)
    return lambda: timer() / len(calls)


def _times(
    timers: dict[Key, Callable[[], float]],
    steps: dict[str, Any],
    seconds: float,
    about: dict[str, Row],
) -> dict[Key, list[float]]:
    """Without the implementations that fail meanwhile, such as for memory that others hold."""
    while True:
        try:
            return clocks.interleaved(timers, seconds)
        except clocks.TimerError as error:
            failed = error.key[1]
            about[failed] = failure(error.error)
            for key in [key for key in timers if key[1] == failed]:
                del timers[key]
            del steps[failed]  # with its memories, which the others may need


def _peak_memory(case: Case, step: Step, batch: Batch) -> Row:
    """``extra_bytes`` of a step beside its inputs, or ``no_memory``, why there are none."""
    row = tried(_peak, step, batch) if batch[0].is_cuda else isolated(_first_peak, case, type(step))
    return {"no_memory": row["reason"]} if "reason" in row else row


def _first_peak(case: Case, kind: type[Step]) -> Row:
    """Of a step on the CPU, after a first one that makes or compiles what is made only once."""
    state, [batch] = draw(case, torch.device("cpu"), sets=1)
    step = kind(case, state)
    step(*batch)
    return _peak(step, batch)


def _peak(step: Step, batch: Batch) -> Row:
    return {"extra_bytes": peak_extra_memory(partial(step, *batch), batch[0].is_cuda)}
