"""Where a step's time goes: by kernel or PyTorch's operator, and on the host by our layers."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import Step
from benchmarks.measuring import clocks
from benchmarks.measuring.agreement import Agreement
from benchmarks.measuring.memory import tried
from benchmarks.measuring.run import HOST, OPERATOR, OURS, Row, agreeing, timing
from rrd_kernels import RRDLoss, functional
from rrd_kernels import validation as check

CASE = Case(1, 2, "float32")  # so small that kernels do not drown the host's layers
S_DIM, T_DIM = 64, 256  # the published features' widths (resnet8x4, resnet32x4)
CALLS = 5  # between two looks at the clock: so few that other work seldom comes between


def breakdown(
    case: Case, kinds: Iterable[type[Step]], device: torch.device, count: int
) -> Iterator[Row]:
    """A row for each operator or kernel without those that it calls, longest first: averages of
    ``count`` steps, with the profiler's microsecond or so for each. What disagrees has none."""
    with clocks.products_in(case.format):
        state, batches = draw(case, device)
        steps, _ = agreeing(kinds, Agreement(case, state, batches[0]), device)
        for name, twins in steps.items():
            step = clocks.one_by_one(clocks.turns(twins, batches))
            parts = tried(_parts, step, device, count)
            fixed = case.fields() | {"figure": OPERATOR, "implementation": name}
            for part in parts.pop("parts", [parts]):
                yield fixed | part


def _parts(step: Callable[[], object], device: torch.device, count: int) -> Row:
    step()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # without the profiler's own messages
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiled:
        clocks.wall_time(step, device, count)
    parts = []
    for event in profiled.key_averages():
        # An operator's line on a GPU repeats the time of its kernels, and so does that of a range
        # that a library has named, such as a graph that torch.compile made.
        if on_gpu and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if taken:
            calls, median = event.count / count, taken / 1e6 / count
            parts.append({"name": event.key, "calls": calls, "median": median})
    if not parts:
        raise RuntimeError(f"the profiler saw nothing that ran on {device.type}")
    return {"parts": sorted(parts, key=lambda part: -part["median"])}


def layers(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Calls by what each has beyond the one before; the last is a step of ``RRDLoss``."""
    widths: Any = {"s_dim": S_DIM, "t_dim": T_DIM, "feat_dim": CASE.dim}
    criterion = RRDLoss(**widths, nce_k=CASE.rows, start="unit", backend="fused", device=device)
    criterion.warmup(CASE.batch)
    memory: Any = criterion.memory
    state = (memory.queue, memory.queue_ptr)
    features = [torch.randn(CASE.batch, width, device=device) for width in (S_DIM, T_DIM)]
    project = partial(memory.project, *features, memory.queue)
    z_s, z_t = (z.detach() for z in project())
    leaf = z_s.clone().requires_grad_()
    taus: Any = {"tau_s": criterion.tau_s, "tau_t": criterion.tau_t}
    # In the schema's order: unit_memory, own_pair, kl, precision; enqueue, newest_first, momentum.
    settings: Any = (*taus.values(), True, False, False, None, check.REDUCTIONS.index("mean"))
    settings += ("before", False, 0.0)
    operator: Any = torch.ops.rrd_kernels.relational_step_
    step: Any = partial(functional.relational_step_, unit_memory=True, backend="fused", **taus)
    return {
        "operator: dispatcher, launches": lambda: operator(*state, z_s, z_t, *settings),
        "autograd: a node for the gradient": lambda: operator(*state, leaf, z_t, *settings),
        "Python: checks and defaults": lambda: step(leaf, z_t, *state),
        "two nn.Linear: the embeddings": lambda: step(*project(), *state),
        "Python: modules": lambda: criterion(*features),
        "backward: engine, all gradients": lambda: criterion(*features).backward(),
    }


def host_time(device: torch.device, seconds: float) -> Iterator[Row]:
    """A row for each of the :func:`layers`, timed in turn: its time is the median over the rounds
    of the difference to the one before. The larger matrices of nn.Linear are in none of them."""
    clock = partial(clocks.wall_time, device=device, times=CALLS, whole=False)
    timers: Any = {name: partial(clock, call) for name, call in layers(device).items()}
    below = np.zeros(1)
    for name, taken in clocks.interleaved(timers, seconds).items():
        fixed = {"figure": HOST, "implementation": OURS, "name": name}
        yield CASE.fields() | fixed | timing((np.array(taken) - below).tolist())
        below = np.array(taken)
