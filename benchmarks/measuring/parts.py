"""The parts of a training step that can be called alone: forward, backward and what it writes."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases.inputs import Batch
from benchmarks.implementations.step import AutogradStep, Step
from benchmarks.measuring.clocks import in_blocks, wait_for, wall_time
from benchmarks.measuring.turns import one_by_one, turns

STEP, FORWARD, BACKWARD = "step", "forward", "backward"


def parts_of(kind: type[Step]) -> list[str]:
    """Those that an implementation has; what autograd does not differentiate has no halves."""
    halves = [FORWARD, BACKWARD] if issubclass(kind, AutogradStep) else []
    return [*halves, kind.write_name]


class Graph(NamedTuple):
    """What a forward leaves for backward."""

    step: AutogradStep
    loss: Tensor
    z_s: Tensor

    @classmethod
    def of(cls, step: AutogradStep, z_s: Tensor, *rest: Any) -> "Graph":
        z_s = z_s.detach().requires_grad_()
        return cls(step, step.forward(z_s, *rest), z_s)

    def backward(self) -> Tensor:
        return self.step.backward(self.loss, self.z_s)


def calls_of(part: str, steps: Sequence[Any], batches: Sequence[Batch]) -> Callable[[], Any]:
    """Each call makes that part of the next step; of backward it makes the graph for one."""
    if part == STEP:
        return one_by_one(turns(steps, batches))
    if part == BACKWARD:
        return one_by_one(turns([partial(Graph.of, step) for step in steps], batches))
    if part == FORWARD:
        leaves = [(z_s.detach().clone().requires_grad_(), *rest) for z_s, *rest in batches]
        return one_by_one(turns([step.forward for step in steps], leaves))
    return one_by_one(turns([step.write for step in steps], batches))


def timer_of(
    part: str, steps: Sequence[Step], batches: Sequence[Batch], device: torch.device
) -> Callable[[], float]:
    """Seconds of that part by the host's clock."""
    call = calls_of(part, steps, batches)
    if part == BACKWARD:
        return partial(_backward_time, call, device)
    return in_blocks(partial(wall_time, call, device), device)


def _backward_time(make: Callable[[], Graph], device: torch.device) -> float:
    """One, of a graph that is made before, so that a GPU is waited for after each: many graphs
    at once might not fit it."""
    graph = make()
    wait_for(device)
    start = time.perf_counter()
    graph.backward()
    wait_for(device)
    return time.perf_counter() - start
