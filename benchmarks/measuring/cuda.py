"""CUDA graphs, and times by the device's clock."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.implementations.step import Step


def captured(steps: Sequence[Step], calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """A graph of all ``calls``, replayed once to see that it is they that it holds; else, or where
    one cannot be captured, a RuntimeError."""
    if steps[0].waits_for_device:
        raise RuntimeError("it waits for the device")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    outside = torch.cuda.current_stream()
    stream.wait_stream(outside)
    try:
        # On the capturing stream, for which libraries allocate their workspaces.
        with torch.cuda.stream(stream):
            for call in [*calls, *calls]:
                call()
        outside.wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            *_, (loss, grad) = [call() for call in calls]
    finally:
        # After a failure some versions of PyTorch leave the capturing stream current.
        torch.cuda.set_stream(outside)
    for output in (loss, grad):
        output.fill_(torch.nan)
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


def device_time(call: Callable[[], object], times: int = 1) -> float:
    """Seconds on the device's clock for each of ``times`` calls in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times
