"""Interleaved rounds of what is compared, by the host's clock or a GPU's, with copies in turn."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch

#: A spread needs so many rounds; calls that take longer than this for them get fewer.
ROUNDS, LIMIT_SECONDS, LEAST_ROUNDS = 7, 20.0, 3
LONG_SECONDS = 3.0  # of a first round
#: How long a GPU is kept busy between two looks at the clock, and by how many calls at most.
BLOCK_SECONDS, BLOCK_CALLS = 0.01, 500


def spread(times: list[float]) -> dict[str, float]:
    """The median, and the 20th and 80th percentile."""
    p20, median, p80 = np.percentile(times, (20, 50, 80)).tolist()
    return {"median": median, "p20": p20, "p80": p80}


def interleaved(
    timers: dict[Any, Callable[[], float]],
    seconds: float,
    min_rounds: int = ROUNDS,
    failed: Callable[[Any, Exception], object] | None = None,
) -> dict[Any, list[float]]:
    """The seconds that each timer returns in each round, a b c, b c a, ...: each comes after each.
    A shared machine slows a round's times alike, so their ratio means more than that of medians.
    After a first round, which counts only if it takes three seconds, others go on for ``seconds``
    and until there are ``min_rounds``, but no longer than 20 seconds once there are three.
    ``failed`` is told which timer raised an error, and takes it, and others with it, out of
    ``timers``; without it the error goes on."""
    times: dict[Any, list[float]] = {name: [] for name in timers}
    rounds, taken, start, warm = 0, 0.0, time.perf_counter(), False
    while timers and (rounds < min_rounds or taken < seconds):
        if rounds >= LEAST_ROUNDS and taken > LIMIT_SECONDS:
            break
        names = list(timers)
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            try:
                if name in timers:
                    times[name].append(timers[name]())
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
        rounds, taken = rounds + 1, time.perf_counter() - start
        # Where a round takes seconds, what the first has to warm up is little beside it.
        if not warm and taken <= LONG_SECONDS:
            times = {name: [] for name in timers}
            rounds, taken, start = 0, 0.0, time.perf_counter()
        warm = True
    return {name: times[name] for name in timers}


def wall_time(
    call: Callable[[], object], device: torch.device, times: int = 1, whole: bool = True
) -> float:
    """Seconds for each of ``times`` calls in a row. The device is waited for before, and after it
    unless the host's time alone is wanted; a CPU has done all that it was given."""
    wait: Any = torch.accelerator.synchronize if device.type != "cpu" else lambda device: None
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    if whole:
        wait(device)
    return (time.perf_counter() - start) / times


def device_time(call: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds on the device's clock for each of ``times`` calls in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def timer_of(
    call: Callable[[], object],
    device: torch.device,
    clock: Callable[..., float] = wall_time,
    parts: int = 1,
) -> Callable[[], float]:
    """A timer of ``call``: its seconds over ``parts``; on a GPU the mean of many calls in a row, so
    that the first and the last do not count."""

    @cache
    def calls() -> int:
        clock(call, device, 3)
        return max(1, min(BLOCK_CALLS, round(BLOCK_SECONDS / clock(call, device, 3))))

    return lambda: clock(call, device, 1 if device.type == "cpu" else calls()) / parts


def captured(steps: Sequence[Any], calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """A graph of all ``calls``, whose replay has been seen to do the steps; a RuntimeError where it
    does not, or where a call cannot be captured."""
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


@contextmanager
def products_in(format: str) -> Iterator[None]:
    """PyTorch's own float32 products too, in float32 or in ``"tf32"``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if format == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_twins(step: Any, cache_bytes: int | None) -> list[Any]:
    """``step`` and so many others like it that these fill the cache, if it is known, between two
    turns of one; a memory of twice the cache pushes itself out."""
    size = sum(tensor.nbytes for tensor in step.state)
    alone = not cache_bytes or size >= 2 * cache_bytes
    others = 0 if alone else min(63, math.ceil(cache_bytes / size))  # a test's memories are tiny
    return [step, *(step.twin() for _ in range(others))]


def turns(calls: Sequence[Callable[..., Any]], batches: Sequence[Any]) -> list[Callable[[], Any]]:
    """Until calls and batches meet again as at first: each the next call, of the next batch."""
    period = math.lcm(len(calls), len(batches))
    pairs = zip(itertools.cycle(calls), itertools.cycle(batches), strict=False)
    return [partial(call, *batch) for call, batch in itertools.islice(pairs, period)]


def one_by_one(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Each call makes the next of ``calls``, again and again."""
    following = itertools.cycle(calls)
    return lambda: next(following)()
