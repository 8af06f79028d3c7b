"""The parts of a training step that can be called alone: forward, backward and what it writes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases.inputs import Batch
from benchmarks.implementations.step import AutogradStep
from benchmarks.measuring.clocks import in_blocks, wall_time
from benchmarks.measuring.turns import one_by_one, turns

STEP, FORWARD, BACKWARD = "step", "forward", "backward"


def parts_of(kind: Any) -> list[str]:
    """Those that an implementation has; what autograd does not differentiate has no halves."""
    halves = [FORWARD, BACKWARD] if issubclass(kind, AutogradStep) else []
    return [*halves, kind.write_name]


class Graph(NamedTuple):
    """What a forward leaves for backward."""

    step: AutogradStep
    loss: Tensor
    z_s: Tensor

    @classmethod
    def of(cls, step: AutogradStep, z_s: Tensor, *rest: Tensor) -> "Graph":
        z_s = z_s.detach().requires_grad_()
        return cls(step, step.forward(z_s, *rest), z_s)

    def backward(self) -> Tensor:
        return self.step.backward(self.loss, self.z_s)


def calls_of(part: str, steps: Sequence[Any], batches: Sequence[Batch]) -> Callable[[], Any]:
    """Each call makes that part of the next step; of backward it makes the graph for one."""
    if part == STEP:
        calls = steps
    elif part in (FORWARD, BACKWARD):
        calls = [partial(Graph.of, step) for step in steps]
    else:
        calls = [step.write for step in steps]
    return one_by_one(turns(calls, batches))


def timer_of(
    part: str, steps: Sequence[Any], batches: Sequence[Batch], device: torch.device
) -> Callable[[], float]:
    """Seconds of that part by the host's clock."""
    call = calls_of(part, steps, batches)
    if part == BACKWARD:
        # One at a time: the graphs of many might not fit a GPU.
        return lambda: wall_time(call().backward, device)
    return in_blocks(partial(wall_time, call, device), device)
