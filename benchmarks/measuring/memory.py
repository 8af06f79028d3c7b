"""The peak memory of a call, and processes in which nothing else has allocated."""

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring.outcomes import tried

CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_extra_memory(call: Callable[[], object], on_gpu: bool = False) -> int:
    """Bytes by which memory at its highest during ``call()`` exceeds that before it.

    What ``call`` allocates for good at its first use counts: call it once before. Of a GPU it is
    what PyTorch's allocator counts; of a CPU, on Linux only, resident memory (VmHWM), with pages of
    4 KiB or, where transparent huge pages are always on, 2 MiB. The kernel sums its counters per
    core, which can hide a few hundred KiB.
    """
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - allocated
    # What glibc keeps after a free goes back: a call that filled it again would seem to need none.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    CLEAR_REFS.write_text("5")
    resident = _status_bytes("VmRSS")
    call()
    return max(_status_bytes("VmHWM") - resident, 0)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) * 1024  # "1234 kB"


def limit_memory(size: int) -> None:
    """Lets this process allocate ``size`` more bytes: what goes beyond fails, and at once."""
    import resource  # not on Windows

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + size, hard))


def isolated(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """A row's fields, which ``function(*arguments)`` returns in a new process, or how it failed."""
    # Forked from one that has imported all of this and done nothing yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, "torch._inductor.compile_fx"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return tried(pool.submit(tried, function, *arguments).result)
