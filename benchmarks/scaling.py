"""Time and memory as the memory's rows or the batch grow, until memory runs out.

``python -m benchmarks.scaling IMPLEMENTATION AXIS SECONDS LIMIT``, the axis as JSON, prints a point
as JSON for each value; it allocates at most LIMIT bytes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import cuda, hardware
from benchmarks.agreement import FifoAgreement, agreed
from benchmarks.cases import Axis, Case
from benchmarks.fits import PowerLaw, power_law
from benchmarks.implementations import implementations
from benchmarks.inputs import draw
from benchmarks.isolated import fatal, module_output, named
from benchmarks.measure import (
    CLEAR_REFS,
    NOT_MEASURED,
    Spread,
    calls_in_a_block,
    first_line,
    outcome_of,
    peak_extra_memory,
    wall_time,
)
from benchmarks.peers import Compiled
from benchmarks.sdpa import Math
from benchmarks.step import Step
from benchmarks.turns import one_by_one, turns

#: Of a CPU's free memory, what a series may take: the rest is the system's, and no step is to wait
#: for a swap.
MEMORY_SHARE = 0.8
#: A point is timed until there are so many rounds, but no longer than this ...
ROUNDS, LIMIT_SECONDS = 7, 3.0
#: ... once there are so many, or one where a round takes longer than that.
LEAST_ROUNDS = 3
#: Samples that are compared with the reference: float64, and many times slower than what is timed.
SAMPLES = 16
#: What the measure of a CPU's memory cannot see, see peak_extra_memory: a fit counts it as this.
LEAST_BYTES = 1 << 18


@dataclass(frozen=True)
class Point:
    """One size; without figures the outcome says why."""

    value: int
    seconds: Spread | None = None
    rounds: int = 0
    extra_bytes: int | None = None
    outcome: str | None = None
    reason: str | None = None
    #: Of the memory, that took turns.
    copies: int = 1


@dataclass(frozen=True)
class Series:
    """One implementation along one axis, up to the first size that failed."""

    axis: Axis
    implementation: str
    points: Sequence[Point]
    #: Of a CPU: what it was allowed to allocate.
    memory_limit: int | None

    @property
    def time(self) -> PowerLaw | None:
        timed = [(point.value, point.seconds.median) for point in self.points if point.seconds]
        return power_law([x for x, _ in timed], [y for _, y in timed])

    @property
    def memory(self) -> PowerLaw | None:
        known = [point for point in self.points if point.extra_bytes is not None]
        sizes = [max(point.extra_bytes or 0, LEAST_BYTES) for point in known]
        return power_law([point.value for point in known], sizes)

    def as_record(self) -> dict[str, Any]:
        fits = {"time": self.time, "memory": self.memory}
        fitted = {f"{name}_fit": asdict(fit) if fit else None for name, fit in fits.items()}
        return asdict(self) | fitted


def implementations_along(axis: Axis, device: torch.device) -> list[type[Step]]:
    """Those that take the axis's cases and not minutes of it: compiled for each size, or with B×K
    matrices as the published code has them already."""
    kinds = implementations(axis.case, device)
    slow = (Compiled, Math)
    return [kind for kind in kinds if kind not in slow and not kind.why_not(axis.case)]


def run_series(kind: type[Step], axis: Axis, device: torch.device, seconds: float) -> Series:
    """One implementation along ``axis``.

    Args:
        kind: the implementation.
        axis: what grows.
        device: where. On a CPU in a process, which cannot take the memory that the machine needs.
        seconds: how long to time each size; at least one call, and less where it takes long.
    """
    if device.type != "cpu":
        return Series(axis, kind.name, list(measure(kind, axis, device, seconds)), None)
    limit = int(MEMORY_SHARE * hardware.available_memory())
    return Series(axis, kind.name, list(_isolated(kind, axis, seconds, limit)), limit)


def measure(kind: type[Step], axis: Axis, device: torch.device, seconds: float) -> Iterator[Point]:
    """A point for each size in turn; the first without figures is the last."""
    for value, case in zip(axis.values, axis.cases, strict=True):
        try:
            point = _measure(kind, case, value, device, seconds)
        except Exception as error:  # sizes before it have been measured
            point = Point(value, outcome=outcome_of(error), reason=first_line(error))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield point
        if point.outcome:
            return


def _measure(
    kind: type[Step], case: Case, value: int, device: torch.device, seconds: float
) -> Point:
    state, batches = draw(case, device)
    step = kind(case, state)
    try:
        judge = FifoAgreement(case, state, batches[0], SAMPLES)
    except Exception as error:  # also for want of memory, which is not the step's
        reason = f"the reference: {first_line(error)}"
        return Point(value, outcome=NOT_MEASURED, reason=reason)
    steps = agreed(step, judge, hardware.cache_bytes(device)).steps
    del judge, state
    timer: Callable[[], float]
    timer = partial(wall_time, one_by_one(turns(steps, batches)), device)
    if device.type == "cuda":
        timer = partial(timer, calls_in_a_block(timer))
    # A trial of its own: the measure of memory empties the allocator first.
    trial: list[float] = []
    extra = None
    if device.type == "cuda":
        extra = cuda.peak_extra_memory(lambda: trial.append(timer()))
    elif CLEAR_REFS.exists():
        extra = peak_extra_memory(lambda: trial.append(timer()))
    else:
        trial.append(timer())
    times: list[float] = []
    start = time.perf_counter()
    least = LEAST_ROUNDS if trial[0] <= LIMIT_SECONDS else 0
    while len(times) < ROUNDS or time.perf_counter() < start + seconds:
        too_long = time.perf_counter() + trial[0] > start + LIMIT_SECONDS
        if too_long and len(times) >= least:
            break
        times.append(timer())
    times = times or trial
    return Point(value, Spread.of(times), len(times), extra, copies=len(steps))


def settle_allocator() -> None:
    """Brings the C library's allocator into the state of a process that has trained for a while: a
    block that was freed lets it keep others of that size, up to 32 MiB, and not hand each back to
    the system, from which it would come page by page again. Code that makes many matrices would
    look slower than it is."""
    for _ in range(2):
        torch.empty(31 << 20, dtype=torch.uint8).fill_(0)


def _isolated(kind: type[Step], axis: Axis, seconds: float, limit: int) -> Iterator[Point]:
    arguments = (kind.name, json.dumps(asdict(axis)), str(seconds), str(limit))
    points = []
    with module_output("benchmarks.scaling", *arguments) as (output, process):
        for line in output:
            points.append(_point(json.loads(line)))
            yield points[-1]
    if process.returncode:
        outcome, reason = fatal(process.returncode)
        yield Point(axis.values[len(points)], outcome=outcome, reason=reason)


def _point(fields: Mapping[str, Any]) -> Point:
    seconds = fields["seconds"]
    return Point(**{**fields, "seconds": Spread(**seconds) if seconds else None})


def _axis(fields: Mapping[str, Any]) -> Axis:
    return Axis(fields["name"], Case(**fields["case"]), tuple(fields["values"]))


def from_record(fields: Mapping[str, Any]) -> Series:
    """The series that :meth:`Series.as_record` wrote."""
    points = [_point(point) for point in fields["points"]]
    axis = _axis(fields["axis"])
    return Series(axis, fields["implementation"], points, fields["memory_limit"])


if __name__ == "__main__":
    name, axis_json, seconds_text, limit_text = sys.argv[1:]
    axis = _axis(json.loads(axis_json))
    hardware.limit_memory(int(limit_text))
    settle_allocator()
    for point in measure(named(name, axis.case), axis, torch.device("cpu"), float(seconds_text)):
        print(json.dumps(asdict(point)), flush=True)
