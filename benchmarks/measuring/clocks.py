"""Interleaved rounds of what is compared, by the host's clock."""

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
BLOCK_SECONDS = 0.01
BLOCK_CALLS = 500


def spread(times: list[float]) -> dict[str, float]:
    """The median, and the 20th and 80th percentile."""
    p20, median, p80 = np.percentile(times, (20, 50, 80)).tolist()
    return {"median": median, "p20": p20, "p80": p80}


@dataclass(eq=False)  # an exception is hashable
class TimerError(Exception):
    """The timer ``key`` failed with ``error``."""

    key: Any
    error: Exception


def interleaved(
    timers: Mapping[K, Callable[[], float]], seconds: float, min_rounds: int = ROUNDS
) -> dict[K, list[float]]:
    """What each timer returns in each round: a b c, b c a, ...: each comes after each.

    A machine that slows down or is shared slows all calls of a round alike, so that the ratio of
    two times of one round means more than the ratio of two medians.

    Args:
        timers: each does once what is timed, and returns how many seconds it took.
        seconds: after a first round, which counts only if it takes three seconds, others go on for
            this long and until there are ``min_rounds``, but no longer than 20 seconds once there
            are three.

    Raises:
        TimerError: one failed.
    """
    times: dict[K, list[float]] = {name: [] for name in timers}
    names = list(timers)

    def one_round(first: int) -> None:
        for name in names[first:] + names[:first]:
            try:
                times[name].append(timers[name]())
            except Exception as error:
                raise TimerError(name, error) from error

    start = time.perf_counter()
    one_round(0)
    # Where a round takes seconds, what the first has to warm up is little beside it.
    warm_up = 0 if time.perf_counter() - start > LONG_SECONDS else 1
    if warm_up:
        start = time.perf_counter()
    rounds, taken = 1 - warm_up, 0.0
    while names and (rounds < min_rounds or taken < seconds):
        if rounds >= LEAST_ROUNDS and taken > LIMIT_SECONDS:
            break
        one_round(rounds % len(names))
        rounds, taken = rounds + 1, time.perf_counter() - start
    return {name: some[warm_up:] for name, some in times.items()}


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
    if device.type == "cpu":
        return partial(timer, 1)

    @cache
    def calls() -> int:
        timer(3)
        return max(1, min(BLOCK_CALLS, round(BLOCK_SECONDS / timer(3))))

    return lambda: timer(calls())


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Over the rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


@contextmanager
def float32_matmul_precision(precision: str) -> Iterator[None]:
    """The global setting, put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
