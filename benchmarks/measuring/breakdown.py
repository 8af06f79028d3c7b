"""Where the time of a step goes: by kernel on a GPU, by PyTorch's operators on a CPU."""

import os
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import Step
from benchmarks.measuring.clocks import float32_matmul_precision, wall_time
from benchmarks.measuring.outcomes import failure
from benchmarks.measuring.run import Row, agreeing
from benchmarks.measuring.turns import one_by_one, turns

OPERATOR = "operator"


def breakdown(
    case: Case, kinds: Iterable[type[Step]], device: torch.device, count: int
) -> Iterator[Row]:
    """A row for each operator or kernel, without those that it calls: averages of ``count`` steps.

    The profiler itself takes a microsecond or so for each operator, so they do not add up to the
    time without it.
    """
    with float32_matmul_precision(case.matmul_precision):
        batches, steps, _ = agreeing(kinds, case, device)  # run_case reports those that fail
        for name, twins in steps.items():
            fixed = case.fields() | {"figure": OPERATOR, "implementation": name}
            try:
                for part in _parts(one_by_one(turns(twins, batches)), device, count):
                    yield fixed | part
            except Exception as error:
                yield fixed | failure(error)


def _parts(step: Callable[[], object], device: torch.device, count: int) -> list[Row]:
    """The longest first."""
    step()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # without the profiler's own messages
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiled:
        wall_time(step, device, count)
    parts = []
    for event in profiled.key_averages():
        # An operator's line on a GPU repeats the time of its kernels, and so does that of a range
        # that a library has named, such as a graph that torch.compile made.
        if on_gpu and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if taken:
            median, calls = taken / 1e6 / count, event.count / count
            parts.append({"name": event.key, "calls": calls, "median": median})
    if not parts:
        raise RuntimeError(f"the profiler saw nothing that ran on {device.type}")
    return sorted(parts, key=lambda part: -part["median"])
