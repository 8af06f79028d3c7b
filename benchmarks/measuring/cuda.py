"""CUDA graphs, and times by the device's clock."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.implementations.step import Step


def captured(steps: Sequence[Step], calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """A graph of all ``calls``, replayed once to see that it is they that it holds.

    Raises:
        RuntimeError: a call cannot be captured, or the replay does not do the steps.
    """
    if steps[0].waits_for_device:
        raise RuntimeError("it waits for the device")
    graph, (loss, grad) = _capture(calls)
    loss.fill_(torch.nan)
    grad.fill_(torch.nan)
    states = [tensor for step in steps for tensor in step.state]
    before = [tensor.clone() for tensor in states]
    graph.replay()
    replayed = [tensor.clone() for tensor in states]
    for tensor, value in zip(states, before, strict=True):
        tensor.copy_(value)
    for call in calls:
        call()
    same = all(map(torch.equal, states, replayed))
    if not same or not (loss.isfinite() & grad.isfinite().all()):
        raise RuntimeError("the replay does not do the steps")
    return graph


def _capture(calls: Sequence[Callable[[], Any]]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """All ``calls`` in one graph, and what the last returned; each has run before."""
    outside, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(outside)
    try:
        # On the capturing stream, for which libraries allocate their workspaces.
        with torch.cuda.stream(stream):
            for call in [*calls, *calls]:
                call()
        outside.wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            returned = [call() for call in calls]
    finally:
        # After a failure some versions of PyTorch leave the capturing stream current.
        torch.cuda.set_stream(outside)
    return graph, returned[-1]


def device_time(call: Callable[[], object], times: int = 1) -> float:
    """Seconds on the device's clock for each of ``times`` calls in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times
