"""Interleaved rounds of what is compared, over copies of a memory that take turns."""

import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import torch

K = TypeVar("K", bound=Hashable)

#: A spread needs so many rounds; calls that take longer than this for them get fewer.
ROUNDS, LIMIT_SECONDS = 7, 20.0
LONG_SECONDS = 3.0
LEAST_ROUNDS = 3
#: How long a GPU is kept busy between two looks at a clock, and the most calls in that time.
BLOCK_SECONDS, BLOCK_CALLS = 0.01, 500
#: Of memories so small that they are made for tests.
MOST_COPIES = 64


def spread(times: list[float]) -> dict[str, float]:
    """The median, and the 20th and 80th percentile."""
    p20, median, p80 = np.percentile(times, (20, 50, 80)).tolist()
    return {"median": median, "p20": p20, "p80": p80}


def interleaved(
    timers: dict[K, Callable[[], float]],
    seconds: float,
    min_rounds: int = ROUNDS,
    failed: Callable[[K, Exception], object] | None = None,
) -> dict[K, list[float]]:
    """The seconds that each timer returns in each round: a b c, b c a, ...: each comes after each.

    A machine that slows down or is shared slows all calls of a round alike, so that the ratio of
    two times of one round means more than the ratio of two medians.

    After a first round, which counts only if it takes three seconds, others go on for ``seconds``
    and until there are ``min_rounds``, but no longer than 20 seconds once there are three.
    ``failed`` is told which timer raised an error, and takes it, and others with it, out of
    ``timers``; without it the error goes on.
    """
    times: dict[K, list[float]] = {name: [] for name in timers}

    def one_round(first: int) -> None:
        names = list(timers)
        for name in names[first:] + names[:first]:
            try:
                if name in timers:
                    times[name].append(timers[name]())
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)

    start = time.perf_counter()
    one_round(0)
    # Where a round takes seconds, what the first has to warm up is little beside it.
    warm_up = 0 if time.perf_counter() - start > LONG_SECONDS else 1
    if warm_up:
        start = time.perf_counter()
    rounds, taken = 1 - warm_up, 0.0
    while timers and (rounds < min_rounds or taken < seconds):
        if rounds >= LEAST_ROUNDS and taken > LIMIT_SECONDS:
            break
        one_round(rounds % len(timers))
        rounds, taken = rounds + 1, time.perf_counter() - start
    return {name: times[name][warm_up:] for name in timers}


def interleaved_times(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    min_rounds: int = ROUNDS,
) -> dict[str, list[float]]:
    """Seconds of each call in each round, see :func:`interleaved`."""
    timers = {name: host_timer(call, device) for name, call in calls.items()}
    return interleaved(timers, seconds, min_rounds)


def wall_time(call: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds for each of ``times`` calls in a row; the device is waited for before and after."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait_for(device)
    return (time.perf_counter() - start) / times


def wait_for(device: torch.device) -> None:
    """Until it has done all that it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def host_timer(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Returns the seconds of a call."""
    return in_blocks(partial(wall_time, call, device), device)


def in_blocks(timer: Callable[[int], float], device: torch.device) -> Callable[[], float]:
    """``timer``, which makes as many calls as it is told and returns the seconds of one; of a GPU
    over so many that the first and the last do not count."""

    @cache
    def calls() -> int:
        timer(3)
        return max(1, min(BLOCK_CALLS, round(BLOCK_SECONDS / timer(3))))

    return partial(timer, 1) if device.type == "cpu" else lambda: timer(calls())


@contextmanager
def float32_matmul_precision(precision: str) -> Iterator[None]:
    """The global setting, put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def copies_wanted(memory_bytes: int, cache_bytes: int | None) -> int:
    """So many of a memory that each is out of the cache when its turn comes again: the others fill
    it. One of twice the cache pushes itself out. ``None`` where the cache is not known."""
    if not cache_bytes or memory_bytes >= 2 * cache_bytes:
        return 1
    return min(MOST_COPIES, 1 + math.ceil(cache_bytes / memory_bytes))


def with_twins(step: Any, cache_bytes: int | None) -> list[Any]:
    """``step`` and as many others like it as make :func:`copies_wanted` of its state."""
    count = copies_wanted(sum(tensor.nbytes for tensor in step.state), cache_bytes)
    return [step, *(step.twin() for _ in range(count - 1))]


def turns(calls: Sequence[Callable[..., Any]], batches: Sequence[Any]) -> list[Callable[[], Any]]:
    """Until calls and batches meet again as at first: each the next call, of the next batch."""
    period = math.lcm(len(calls), len(batches))
    pairs = zip(itertools.cycle(calls), itertools.cycle(batches), strict=False)
    return [partial(call, *batch) for call, batch in itertools.islice(pairs, period)]


def one_by_one(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Each call makes the next of ``calls``, again and again."""
    following = itertools.cycle(calls)
    return lambda: next(following)()
