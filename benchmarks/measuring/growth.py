"""Time and memory as the memory's rows or the batch grow, until memory runs out."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.cases.agreement import agreement
from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import Axis, Case
from benchmarks.implementations import implementations
from benchmarks.implementations.fifo import Compiled
from benchmarks.implementations.libraries import LinearCrossEntropy
from benchmarks.implementations.sdpa import Math
from benchmarks.implementations.step import Step
from benchmarks.measuring import cuda, hardware
from benchmarks.measuring.clocks import ROUNDS, in_blocks, wall_time
from benchmarks.measuring.memory import CLEAR_REFS, isolated, limit_memory, peak_extra_memory
from benchmarks.measuring.outcomes import NOT_MEASURED, failure, first_line
from benchmarks.measuring.parts import STEP, calls_of
from benchmarks.measuring.run import Row, timing
from benchmarks.measuring.turns import with_twins

GROWTH = "growth"
#: Of a CPU's free memory, what a series may take: the rest is the system's, and no step is to wait
#: for a swap.
MEMORY_SHARE = 0.8
#: A size is timed until there are seven rounds, but no longer than this.
LIMIT_SECONDS = 2.0
#: Samples that are compared with the reference: float64, and many times slower than what is timed.
SAMPLES = 16


def implementations_along(axis: Axis, device: torch.device) -> list[type[Step]]:
    """Those that do not take minutes: compiled for each size, or with B×K matrices as the published
    code has them already."""
    slow = (Compiled, LinearCrossEntropy, Math)
    return [kind for kind in implementations(axis.case, device) if kind not in slow]


def rows_along(axis: Axis, kind: type[Step], device: torch.device) -> Iterator[Row]:
    """A row for each size in turn; the first without figures is the last."""
    if device.type == "cpu":
        # In a process, which cannot take the memory that the machine needs.
        limit = int(MEMORY_SHARE * hardware.available_memory())
        points = isolated(measure_in_limit, axis, kind, limit)
    else:
        limit, points = None, measure(axis, kind, device)
    for case, point in zip(axis.cases, points, strict=False):
        fixed = {"figure": GROWTH, "implementation": kind.name, "axis": axis.label}
        yield case.fields() | fixed | {"memory_limit": limit} | point
        if "outcome" in point:
            return


def measure_in_limit(axis: Axis, kind: type[Step], limit: int) -> Iterator[Row]:
    """:func:`measure` on a CPU, in a process that allocates at most ``limit`` bytes."""
    limit_memory(limit)
    # As the C library's allocator is in a process that has trained for a while: a block that was
    # freed lets it keep others of that size, up to 32 MiB, and not fetch each from the system page
    # by page again. Code that makes many matrices would look slower than it is.
    for _ in range(2):
        torch.empty(31 << 20, dtype=torch.uint8).fill_(0)
    yield from measure(axis, kind, torch.device("cpu"))


def measure(axis: Axis, kind: type[Step], device: torch.device) -> Iterator[Row]:
    for case in axis.cases:
        try:
            yield _measure(case, kind, device)
        except Exception as error:  # sizes before it have been measured
            yield failure(error)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(case: Case, kind: type[Step], device: torch.device) -> Row:
    state, batches = draw(case, device)
    step: Any = kind(case, state)
    try:
        judge = agreement(case, state, batches[0], SAMPLES)
    except Exception as error:  # also for want of memory, which is not the step's
        return {"outcome": NOT_MEASURED, "reason": f"the reference: {first_line(error)}"}
    judge.check(step)
    steps = with_twins(step, hardware.cache_bytes(device))
    del judge, state
    timer = in_blocks(partial(wall_time, calls_of(STEP, steps, batches), device), device)
    trial: list[float] = []
    extra = None
    if device.type == "cuda":
        extra = cuda.peak_extra_memory(lambda: trial.append(timer()))
    elif CLEAR_REFS.exists():
        extra = peak_extra_memory(lambda: trial.append(timer()))
    times: list[float] = []
    end = time.perf_counter() + LIMIT_SECONDS
    while len(times) < ROUNDS and time.perf_counter() < end - (times or trial or [0.0])[0]:
        times.append(timer())
    return timing(times or trial or [timer()]) | {"extra_bytes": extra, "copies": len(steps)}
