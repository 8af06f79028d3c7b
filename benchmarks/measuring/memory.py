"""Peak memory, processes in which nothing else has allocated, and what becomes of what fails."""

import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
OUT_OF_MEMORY, DISAGREES, NOT_AVAILABLE = "out of memory", "disagrees", "not available"
NOT_MEASURED = "not measured"  # not tried, which is no failure


def peak_extra_memory(call: Callable[[], object], on_gpu: bool = False) -> int:
    """Bytes by which memory at its highest during ``call()``, called once before, exceeds that
    before it. Of a GPU it is what PyTorch's allocator counts; of a CPU, on Linux only, resident
    memory (VmHWM), in pages of 4 KiB or, where transparent huge pages are always on, 2 MiB. The
    kernel sums its counters per core, which can hide a few hundred KiB."""
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

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + size, hard))


def isolated(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """:func:`tried` in a new process."""
    # Forked from one that has imported all of this and done nothing yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, "torch._inductor.compile_fx"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        killed = process.exitcode == -signal.SIGKILL  # as the system does for want of memory
        outcome = OUT_OF_MEMORY if killed else NOT_AVAILABLE
        return {"outcome": outcome, "reason": f"its process ended with {process.exitcode}"}
    finally:  # after an interrupt too nothing is left running
        process.kill()
        process.join()


def _send(sender: Any, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    sender.send(tried(function, *arguments))


def tried(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A row's fields, which ``function(*arguments)`` returns, or how it failed."""
    try:
        return function(*arguments)
    except Exception as error:
        return failure(error)


def failure(error: BaseException) -> dict[str, str]:
    """A row's fields on it."""
    outcome = DISAGREES if isinstance(error, ArithmeticError) else NOT_AVAILABLE
    # On a CPU PyTorch says so in a plain RuntimeError.
    said = any(text in str(error) for text in ("can't allocate memory", "bad_alloc"))
    if said or isinstance(error, torch.OutOfMemoryError | MemoryError):
        outcome = OUT_OF_MEMORY
    return {"outcome": outcome, "reason": first_line(error)}


def first_line(error: BaseException) -> str:
    """Of the error's text, after its type."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]
