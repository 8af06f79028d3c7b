"""The step and its parts that can be called alone: forward, backward and what it writes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.inputs import Batch
from benchmarks.implementations.step import AutogradStep
from benchmarks.measuring.clocks import in_blocks, wall_time
from benchmarks.measuring.turns import one_by_one, turns

STEP, FORWARD, BACKWARD = "step", "forward", "backward"


def timers_of(
    steps: Sequence[Any], batches: Sequence[Batch], device: torch.device
) -> dict[str, Callable[[], float]]:
    """Seconds of each part by the host's clock; ``steps`` of one implementation take turns."""
    kind = type(steps[0])
    calls = {STEP: steps, kind.write_name: [step.write for step in steps]}
    timers = {}
    if issubclass(kind, AutogradStep):  # the others have no halves
        calls[FORWARD] = [partial(forward, step) for step in steps]
        make = one_by_one(turns(calls[FORWARD], batches))
        # One at a time: the graphs of many might not fit a GPU.
        timers[BACKWARD] = lambda: wall_time(make(), device)
    for part, of_steps in calls.items():
        call = one_by_one(turns(of_steps, batches))
        timers[part] = in_blocks(partial(wall_time, call, device), device)
    return timers


def forward(step: AutogradStep, z_s: Tensor, *rest: Tensor) -> Callable[[], Tensor]:
    """Makes a graph, whose backward it returns."""
    z_s = z_s.detach().requires_grad_()
    return partial(step.backward, step.forward(z_s, *rest), z_s)
