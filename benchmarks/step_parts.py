"""The parts of a training step that can be called alone."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.inputs import Batch
from benchmarks.measure import calls_in_a_block, wait_for, wall_time
from benchmarks.momentum import MomentumStep
from benchmarks.step import AutogradStep, Step, TrainingStep
from benchmarks.turns import one_by_one, turns

FORWARD, BACKWARD = "forward", "backward"
#: The write alone, of the FIFO memory and of the momentum memory.
ENQUEUE, UPDATE = "enqueue", "update"


def parts_of(kind: type[Step]) -> list[str]:
    """Those that an implementation has; what autograd does not differentiate has no halves."""
    if not issubclass(kind, TrainingStep):
        return []
    halves = [FORWARD, BACKWARD] if issubclass(kind, AutogradStep) else []
    return [*halves, UPDATE if issubclass(kind, MomentumStep) else ENQUEUE]


class Graph(NamedTuple):
    """What a forward leaves for backward."""

    step: AutogradStep
    loss: Tensor
    z_s: Tensor

    def backward(self) -> Tensor:
        return self.step.backward(self.loss, self.z_s)


def forwards(steps: Sequence[Any], batches: Sequence[Batch]) -> Callable[[], Tensor]:
    """Each call the next step's forward, of a z_s that requires a gradient."""
    leaves = [(z_s.detach().clone().requires_grad_(), *rest) for z_s, *rest in batches]
    return one_by_one(turns([step.forward for step in steps], leaves))


def graphs(steps: Sequence[Any], batches: Sequence[Batch]) -> Callable[[], Graph]:
    """Each call the next step's forward, for one backward."""

    def graph(step: AutogradStep, z_s: Tensor, *rest: Any) -> Graph:
        z_s = z_s.detach().requires_grad_()
        return Graph(step, step.forward(z_s, *rest), z_s)

    return one_by_one(turns([partial(graph, step) for step in steps], batches))


def writes(steps: Sequence[Any], batches: Sequence[Batch]) -> Callable[[], object]:
    """Each call the next step's write."""
    return one_by_one(turns([step.write for step in steps], batches))


def timers(
    steps: Sequence[Step], batches: Sequence[Batch], device: torch.device
) -> dict[str, Callable[[], float]]:
    """Of each part of ``steps``, which are one implementation's: seconds by the host's clock."""
    found: dict[str, Callable[[], float]] = {}
    for part in parts_of(type(steps[0])):
        if part == BACKWARD:
            found[part] = partial(_backward_time, graphs(steps, batches), device)
            continue
        call = forwards(steps, batches) if part == FORWARD else writes(steps, batches)
        timer = partial(wall_time, call, device)
        times = calls_in_a_block(timer) if device.type == "cuda" else 1
        found[part] = partial(timer, times)
    return found


def _backward_time(make: Callable[[], Graph], device: torch.device) -> float:
    """One, of a graph that is made before, so that a GPU is waited for after each: many graphs
    at once might not fit it."""
    graph = make()
    wait_for(device)
    start = time.perf_counter()
    graph.backward()
    wait_for(device)
    return time.perf_counter() - start
