"""Clocks and counters: interleaved times, the rate of torch.mm, peak memory, other work."""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity

K = TypeVar("K")

WARM_UP_ROUNDS = 2
#: How long a GPU is kept busy between two looks at a clock, and the most calls in that time.
BLOCK_SECONDS = 0.01
BLOCK_CALLS = 500
CLEAR_REFS = Path("/proc/self/clear_refs")
PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Spread:
    """Seconds: the median, and the 20th and 80th percentile; all one where there is one time."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, times: list[float]) -> "Spread":
        if len(times) == 1:
            return cls(*times, *times, *times)
        p20, *_, p80 = statistics.quantiles(times, n=5, method="inclusive")
        return cls(statistics.median(times), p20, p80)


def interleaved(
    timers: Mapping[K, Callable[[], float]],
    seconds: float,
    min_rounds: int = 7,
    warm_up: int = WARM_UP_ROUNDS,
) -> dict[K, list[float]]:
    """What each timer returns in each round: a b c, b c a, ...: each comes after each.

    A machine that slows down or is shared slows all calls of a round alike, so that the ratio of
    two times of one round means more than the ratio of two medians.

    Args:
        timers: each does once what is timed, and returns how many seconds it took.
        seconds: rounds go on for this long ...
        min_rounds: ... and until there are this many, after the warm-up.
        warm_up: rounds that do not count; fewer of what has run before.
    """
    times: dict[K, list[float]] = {name: [] for name in timers}
    for _ in range(warm_up):
        for timer in timers.values():
            timer()
    rounds, names = 0, list(timers)
    end = time.perf_counter() + seconds
    while rounds < min_rounds or time.perf_counter() < end:
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timers[name]())
        rounds += 1
    return times


def interleaved_times(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    min_rounds: int = 7,
) -> dict[str, list[float]]:
    """Seconds of each call in each round, see :func:`interleaved`."""
    timers = {}
    for name, call in calls.items():
        timer = partial(wall_time, call, device)
        times = 1 if device.type == "cpu" else calls_in_a_block(timer)
        timers[name] = partial(timer, times)
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


@contextmanager
def float32_matmul_precision(precision: str) -> Iterator[None]:
    """The global setting, put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def matmul_rate(
    dtype: torch.dtype,
    device: torch.device,
    sizes: tuple[int, ...] = (2048, 4096),
    seconds: float = 2.0,
) -> float:
    """Operations per second of torch.mm on square matrices: the best median among ``sizes``."""
    calls = {}
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        calls[str(size)] = lambda a=a, b=b: torch.mm(a, b)
    times = interleaved_times(calls, device, seconds, min_rounds=3)
    return max(2 * int(size) ** 3 / statistics.median(taken) for size, taken in times.items())


def copy_rate(device: torch.device, size: int, seconds: float) -> float:
    """Bytes per second, read plus written, of copying ``size`` bytes from the device to itself."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = interleaved_times({"copy": lambda: target.copy_(source)}, device, seconds)
    return 2 * size / statistics.median(times["copy"])


def profiler(device: torch.device) -> torch.profiler.profile:
    """Of operators, and of a GPU's kernels, without the profiler's own messages."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, acc_events=True)


#: Outcomes of what has failed, in a few words.
OUT_OF_MEMORY, DISAGREES, NOT_AVAILABLE = "out of memory", "disagrees", "not available"
#: The outcome of what has not been tried, which is no failure.
NOT_MEASURED = "not measured"


def outcome_of(error: BaseException) -> str:
    if isinstance(error, ArithmeticError):
        return DISAGREES
    return OUT_OF_MEMORY if ran_out_of_memory(error) else NOT_AVAILABLE


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU PyTorch says so in a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "bad_alloc" in text


def first_line(error: BaseException) -> str:
    """Of the error's text, after its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def calls_in_a_block(timer: Callable[[int], float]) -> int:
    """How many calls a GPU's clock is looked at for, so that the first and the last do not count.

    Args:
        timer: makes so many calls, and returns the seconds of one.
    """
    timer(3)
    return max(1, min(BLOCK_CALLS, round(BLOCK_SECONDS / timer(3))))


def peak_extra_memory(call: Callable[[], object]) -> int:
    """Bytes by which resident memory at its highest during ``call()`` exceeds that before it.

    Linux only: the kernel's high-water mark (VmHWM), reset before the call. Memory that the C
    library keeps after a free is handed back first, since a call that filled it again would seem to
    need none. What ``call`` allocates for good at its first use counts: call it once before.

    Resolution: pages, of 4 KiB or, where transparent huge pages are always on, 2 MiB; and the
    kernel sums its counters per core, which can hide a few hundred KiB.
    """
    gc.collect()
    # glibc's; other C libraries keep little.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    CLEAR_REFS.write_text("5")
    before = _status_bytes("VmRSS")
    call()
    return max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024  # "1234 kB"
    raise OSError(f"/proc/self/status has no {field}")


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other work keeps busy while this process sleeps; ``None`` but on Linux.

    Threads that wait for one another at a barrier wait for whoever holds the other core: with one
    core taken, a step of many small parallel loops takes many times as long.
    """
    if not PROC_STAT.exists():
        return None
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _busy_ticks() -> int:
    user, nice, system = PROC_STAT.read_text().split(maxsplit=4)[1:4]  # cpu user nice system idle
    return int(user) + int(nice) + int(system)
