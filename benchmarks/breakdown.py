"""Where the time of a step goes: by kernel on a GPU, by PyTorch's operators on a CPU."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType

from benchmarks import hardware
from benchmarks.agreement import agreed, agreement
from benchmarks.cases import AnyCase
from benchmarks.implementations import implementations
from benchmarks.inputs import draw
from benchmarks.measure import (
    WARM_UP_ROUNDS,
    first_line,
    float32_matmul_precision,
    profiler,
    wait_for,
)
from benchmarks.step import Step
from benchmarks.turns import one_by_one, turns


@dataclass(frozen=True)
class Part:
    """One operator or kernel, without those that it calls."""

    name: str
    #: Of a step.
    seconds: float
    calls: float


@dataclass(frozen=True)
class Breakdown:
    """One implementation on one case, the longest part first.

    The profiler itself takes a microsecond or so for each operator, so the parts do not add up to
    the time that the benchmark measures without it.
    """

    case: AnyCase
    implementation: str
    parts: list[Part]
    #: Why there are none.
    reason: str | None = None
    #: Of the memory, that took turns.
    copies: int = 1


def breakdowns(
    case: AnyCase, device: torch.device, steps: int, without: Collection[type[Step]] = ()
) -> Iterator[Breakdown]:
    """Of every implementation that runs on ``device`` and agrees with the reference: averages over
    ``steps`` steps."""
    with float32_matmul_precision(case.matmul_precision):
        state, batches = draw(case, device)
        judge = agreement(case, state, batches[0])
        cache = hardware.cache_bytes(device)
        for kind in implementations(case, device):
            if kind in without or kind.why_not(case):
                continue
            try:
                copies = agreed(kind(case, state), judge, cache).steps
                parts = _parts(one_by_one(turns(copies, batches)), device, steps)
                yield Breakdown(case, kind.name, parts, copies=len(copies))
            except Exception as error:  # a library's: run_case reports it with the others
                yield Breakdown(case, kind.name, [], first_line(error))


def _parts(step: Callable[[], object], device: torch.device, steps: int) -> list[Part]:
    for _ in range(WARM_UP_ROUNDS):
        step()
    with profiler(device) as profiled:
        for _ in range(steps):
            step()
        wait_for(device)
    on_gpu = device.type == "cuda"
    parts = []
    for event in profiled.key_averages():
        # An operator's line on a GPU repeats the time of its kernels, and so does that of a range
        # that a library has named, such as a graph that torch.compile made.
        if on_gpu and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        parts.append(Part(event.key, taken / 1e6 / steps, event.count / steps))
    timed = [part for part in parts if part.seconds]
    if not timed:
        raise RuntimeError(f"the profiler saw nothing that ran on {device.type}")
    return sorted(timed, key=lambda part: -part.seconds)
