"""Interleaved rounds of what is compared, over copies of a memory that take turns."""

import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import torch

K = TypeVar("K", bound=Hashable)

#: A spread needs so many rounds; calls that take longer than this for them get fewer.
ROUNDS, LIMIT_SECONDS, LEAST_ROUNDS = 7, 20.0, 3
LONG_SECONDS = 3.0  # of a first round
#: How long a GPU is kept busy between two looks at a clock, and the most calls in that time.
BLOCK_SECONDS, BLOCK_CALLS = 0.01, 500


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
    """The seconds that each timer returns in each round, a b c, b c a, ...: each comes after each.
    A shared machine slows all of a round alike: their ratio means more than that of medians.

    After a first round, which counts only if it takes three seconds, others go on for ``seconds``
    and until there are ``min_rounds``, but no longer than 20 seconds once there are three.
    ``failed`` is told which timer raised an error, and takes it, and others with it, out of
    ``timers``; without it the error goes on.
    """
    times: dict[K, list[float]] = {name: [] for name in timers}
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


def host_timer(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Returns the seconds of a call, by the host's clock."""
    return in_blocks(partial(wall_time, call, device), device)


def in_blocks(
    clock: Callable[[int], float], device: torch.device, parts: int = 1
) -> Callable[[], float]:
    """A timer of one of the ``parts`` of a call, out of a clock that makes as many calls as it is
    told and returns the seconds of one; of a GPU over so many that the ends do not count."""

    @cache
    def calls() -> int:
        clock(3)
        return max(1, min(BLOCK_CALLS, round(BLOCK_SECONDS / clock(3))))

    return lambda: clock(1 if device.type == "cpu" else calls()) / parts


@contextmanager
def products_in(format: str) -> Iterator[None]:
    """PyTorch's own float32 products too, in float32 or in ``"tf32"``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if format == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def copies_wanted(memory_bytes: int, cache_bytes: int | None) -> int:
    """So many of a memory that the others fill the cache, if it is known, between two turns of
    one; one of twice the cache pushes itself out."""
    if not cache_bytes or memory_bytes >= 2 * cache_bytes:
        return 1
    return min(64, 1 + math.ceil(cache_bytes / memory_bytes))  # a test's memories are tiny


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
