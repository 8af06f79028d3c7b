"""The peak memory of a call, and processes in which nothing else has allocated."""

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measuring.outcomes import NOT_AVAILABLE, OUT_OF_MEMORY, failure

CLEAR_REFS = Path("/proc/self/clear_refs")


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


def limit_memory(size: int) -> None:
    """Lets this process allocate ``size`` more bytes: what goes beyond fails, and at once."""
    import resource  # not on Windows

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + size, hard))


def isolated(
    function: Callable[..., Iterator[dict[str, Any]]], *arguments: object
) -> Iterator[dict[str, Any]]:
    """What ``function(*arguments)`` yields in a new process, then how that failed, if it did.

    Args:
        function: of a module; yields fields of a record.
        arguments: that can be pickled.
    """
    # Each is forked from one that has imported all of this and done nothing yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, "torch._inductor.compile_fx"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while (found := receiver.recv()) is not None:
            yield found
    except EOFError:
        process.join()
        killed = process.exitcode == -signal.SIGKILL  # as the system does for want of memory
        outcome = OUT_OF_MEMORY if killed else NOT_AVAILABLE
        yield {"outcome": outcome, "reason": f"its process ended with {process.exitcode}"}
    finally:  # after an interrupt too nothing is left running
        process.kill()
        process.join()


def _send_all(
    sender: Connection,
    function: Callable[..., Iterator[dict[str, Any]]],
    arguments: tuple[object, ...],
) -> None:
    try:
        for found in function(*arguments):
            sender.send(found)
    except Exception as error:  # a library's; what is measured after it can go on
        sender.send(failure(error))
    sender.send(None)
