"""One case, from agreement to figures."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.cases.inputs import Batch, draw
from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import Fused
from benchmarks.implementations.step import Step
from benchmarks.measuring import clocks, hardware
from benchmarks.measuring.agreement import Agreement
from benchmarks.measuring.memory import failure, first_line, isolated, peak_extra_memory, tried

#: One figure of one implementation on one case, flat, as a record has it. Beside the case's fields:
#: figure, implementation, what :func:`timing` says; of a step extra_bytes, the errors and copies of
#: the memory; without figures outcome and reason.
Row = dict[str, Any]

OURS = Fused.name
#: Figures: of the host's clock, of the device's, of growing sizes, of parts, of the host's layers.
STEP, GRAPH, GROWTH, OPERATOR, HOST = "step", "step in a graph", "growth", "operator", "host"


def timing(times: list[float], ours: list[float] | None = None) -> Row:
    """Median, p20 and p80 (seconds), rounds; and times_ours, how many times as long as this
    package in the same round, the median."""
    ratio = {"times_ours": float(np.median(np.divide(times, ours)))} if ours else {}
    return {**clocks.spread(times), "rounds": len(times)} | ratio


def agreeing(
    kinds: Iterable[type[Step]], judge: Agreement, device: torch.device
) -> tuple[dict[str, list[Any]], dict[str, Row]]:
    """Of each implementation as many steps as are to take turns; and what its row says beside
    times, or how it failed."""
    steps: dict[str, list[Any]] = {}
    about: dict[str, Row] = {}
    judges = {judge.case: judge}
    for kind in kinds:
        try:
            step = kind(judge.case, judge.state)
            if step.case not in judges:
                judges[step.case] = Agreement(step.case, judge.state, judge.batch, judge.samples)
            found = judges[step.case].check(step)
            errors = {f"{name}_error": error for name, error in found.items()}
            steps[kind.name] = clocks.with_twins(step, hardware.cache_bytes(device))
            copies = {"copies": len(steps[kind.name])}
            about[kind.name] = errors | copies | {"operations": step.case.operations}
        except Exception as error:  # a compiler's, a library's: the others can go on
            about[kind.name] = failure(error)
    return steps, about


def run_case(
    case: Case,
    kinds: Iterable[type[Step]],
    seconds: float,
    device: torch.device | str = "cpu",
    memory: bool = True,
) -> list[Row]:
    """Checks, then times, implementations of a step for ``seconds`` all together, with their peak
    ``memory``, on a CPU in a new process for each. One that fails or disagrees with the reference
    is not timed, and its row says why."""
    device = torch.device(device)
    timers: dict[tuple[str, str], Callable[[], float]] = {}
    with clocks.products_in(case.format):
        state, batches = draw(case, device)
        steps, about = agreeing(kinds, Agreement(case, state, batches[0]), device)
        for name, twins in steps.items():
            calls = clocks.turns(twins, batches)
            timers[STEP, name] = clocks.timer_of(clocks.one_by_one(calls), device)
            try:
                if device.type == "cuda":
                    replay, clock = clocks.captured(twins, calls).replay, clocks.device_time
                    timers[GRAPH, name] = clocks.timer_of(replay, device, clock, len(calls))
            except Exception as error:  # it can be timed without a graph
                about[name]["not_captured"] = first_line(error)

        def failed(key: tuple[str, str], error: Exception) -> None:
            """Leaves one out and frees its memories, which the others may need."""
            about[key[1]] |= failure(error)
            del steps[key[1]]
            for figure in (STEP, GRAPH):
                timers.pop((figure, key[1]), None)

        times = clocks.interleaved(timers, seconds, failed=failed)
        for name, twins in steps.items() if memory else ():
            if device.type == "cuda":
                peak = tried(_peak, twins[0], batches[0])
            else:
                peak = isolated(_first_peak, case, type(twins[0]))
            about[name] |= {"no_memory": peak["reason"]} if "reason" in peak else peak
    rows = {(STEP, name): row for name, row in about.items()}
    for (figure, name), taken in times.items():
        rows.setdefault((figure, name), {}).update(timing(taken, times.get((figure, OURS))))
    return [
        case.fields() | {"figure": figure, "implementation": name} | row
        for (figure, name), row in rows.items()
    ]


def beside_busy(case: Case, kinds: list[type[Step]], seconds: float) -> Iterator[Row]:
    """Of all, and of the last on one thread, without and with as many processes that spin as there
    are threads, as the workers of a DataLoader may. Others' threads wait long after their work: so
    the last, on all threads and on one, takes turns with itself alone."""
    every = torch.get_num_threads()

    def on_one(step: Step, *batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        torch.set_num_threads(1)
        try:
            return kinds[-1].__call__(step, *batch)
        finally:
            torch.set_num_threads(every)

    fields = {"name": f"{kinds[-1].name} on one thread", "__call__": on_one}
    spin = (sys.executable, "-c", "while True: pass")
    for busy in (0, every):
        processes = [subprocess.Popen(spin) for _ in range(busy)]
        try:
            some = [kinds[-1], type("One", (kinds[-1],), fields)]
            rows = run_case(case, kinds[:-1], seconds, memory=False)
            rows += run_case(case, some, seconds, memory=False)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        figure = f"beside {busy} busy processes" if busy else "alone"
        yield from (row | {"figure": figure} for row in rows)


def _first_peak(case: Case, kind: type[Step]) -> Row:
    """Of a step on the CPU, after a first one that makes or compiles what is made only once."""
    state, [batch] = draw(case, torch.device("cpu"), sets=1)
    step = kind(case, state)
    step(*batch)
    return _peak(step, batch)


def _peak(step: Step, batch: Batch) -> Row:
    return {"extra_bytes": peak_extra_memory(partial(step, *batch), batch[0].is_cuda)}
