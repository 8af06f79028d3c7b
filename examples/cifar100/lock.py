"""One writer to a folder: a lock that the system releases when its process ends, however it does.

It is a POSIX lock, which belongs to a process: a loader's worker that outlives a killed training
does not hold it. Windows has none; there nothing is locked.
"""

import sys
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

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
        ValueError: another process holds it.
    """
    path = _path(folder)
    if path in _held:
        return
    file = _lock(path)
    if file is None:
        raise ValueError(
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
