"""Time and memory as the memory's rows or the batch grow, until memory runs out."""

from collections.abc import Iterable, Iterator

import torch

from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import Step
from benchmarks.measuring import clocks, hardware, memory
from benchmarks.measuring.agreement import Agreement
from benchmarks.measuring.run import GROWTH, Row, agreeing, timing

MEMORY_SHARE = 0.8  # of a CPU's free memory: the rest is the system's
LIMIT_SECONDS = 2.0  # for seven rounds of a size, or for as many as fit in; one is made anyway
SAMPLES = 16  # compared with the reference, which is many times slower than what is timed


def rows_along(
    axis: str, cases: Iterable[Case], kind: type[Step], device: torch.device
) -> Iterator[Row]:
    """A row for each size in turn; the first without figures is the last."""
    for case in cases:
        if device.type == "cpu":
            # In a process, which cannot take the memory that the machine needs.
            limit = int(MEMORY_SHARE * hardware.available_memory())
            point = memory.isolated(measure, case, kind, device, limit) | {"memory_limit": limit}
        else:
            point = memory.tried(measure, case, kind, device)
            torch.cuda.empty_cache()
        fixed = {"figure": GROWTH, "implementation": kind.name, "axis": axis}
        yield case.fields() | fixed | point
        if "outcome" in point:
            return


def measure(case: Case, kind: type[Step], device: torch.device, limit: int | None = None) -> Row:
    """The fields of one size. With ``limit`` this process allocates at most so many more bytes."""
    if limit is not None:
        memory.limit_memory(limit)
        # As in a process that has trained for a while: glibc keeps blocks of a size freed before.
        for _ in range(2):
            torch.empty(31 << 20, dtype=torch.uint8, device="cpu").fill_(0)
    state, batches = draw(case, device)
    try:
        judge = Agreement(case, state, batches[0], SAMPLES)
    except Exception as error:  # also for want of memory, which is not the step's
        reason = f"the reference: {memory.first_line(error)}"
        return {"outcome": memory.NOT_MEASURED, "reason": reason}
    steps, about = agreeing([kind], judge, device)
    if not steps:
        return about[kind.name]
    del judge, state
    calls = clocks.turns(steps[kind.name], batches)
    timer = clocks.timer_of(clocks.one_by_one(calls), device)
    times: list[float] = []
    extra = memory.peak_extra_memory(lambda: times.append(timer()), device.type == "cuda")
    if rounds := min(clocks.ROUNDS, int(LIMIT_SECONDS / times[0])):
        times = clocks.interleaved({GROWTH: timer}, 0.0, rounds)[GROWTH]
    return about[kind.name] | timing(times) | {"extra_bytes": extra}
