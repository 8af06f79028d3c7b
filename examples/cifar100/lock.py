"""One writer to a folder: a lock that the system releases when its process ends, however it does.

It is a POSIX lock, which belongs to a process: a loader's worker that outlives a killed training
does not hold it. Windows has none; there nothing is locked.
"""

import sys
import time
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

#: The exit status of a script that finds its folder held (EX_TEMPFAIL of sysexits.h).
HELD = 75
#: Attempts to lock, as :func:`held_by_another` of another process holds a lock for a moment too.
ATTEMPTS = 5


class HeldError(ValueError):
    """Another process writes to the folder."""


#: What this process holds. Closing any of its files of a path would release that lock.
_held: dict[Path, IO[str]] = {}


def _path(folder: Path) -> Path:
    return folder.absolute() / "lock"


def _lock(path: Path) -> IO[str] | None:
    """The file, locked; None where another process has locked it."""
    file = path.open("a")
    try:
        if sys.platform != "win32":
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        file.close()
        return None
    return file


def hold(folder: Path) -> None:
    """Locks a folder that exists, until :func:`release` or the end of the process.

    Raises:
        HeldError: another process holds it.
    """
    path = _path(folder)
    if path in _held:
        return
    for _ in range(ATTEMPTS):
        file = _lock(path)
        if file is not None:
            break
        time.sleep(0.05)
    else:
        raise HeldError(
            f"another process is training in {folder}; wait for its end, or start a new run with "
            f"another --trial"
        )
    _held[path] = file


def release(folder: Path) -> None:
    """Does nothing where this process does not hold it."""
    if file := _held.pop(_path(folder), None):
        file.close()


def held_by_another(folder: Path) -> bool:
    """Whether another process holds it."""
    path = _path(folder)
    if path in _held or not path.exists():
        return False
    file = _lock(path)
    if file is not None:
        file.close()
    return file is None
