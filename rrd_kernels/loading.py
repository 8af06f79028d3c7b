"""Finds and loads the library of the C++ extension that was built for the PyTorch that runs.

A build from source makes one, ``_C``. A wheel brings one for each version of PyTorch that it knows,
``_C_torch_2_15`` and so on, of which each process loads its own: after an upgrade of PyTorch, the
next process takes another.
"""

import re
import sys
from pathlib import Path

import torch

__all__ = ["libraries", "load"]

FOLDER = Path(__file__).parent
SUFFIXES = (".so", ".pyd", ".dylib")


def _version(text: str) -> tuple[int, int]:
    """(2, 15), of 2.15.0+cpu, 2.15.0a0 and _C_torch_2_15.abi3.so."""
    major, minor = map(int, re.findall(r"\d+", text)[:2])
    return major, minor


def _files(pattern: str) -> list[Path]:
    return sorted(path for path in FOLDER.glob(pattern) if path.suffix in SUFFIXES)


def libraries() -> dict[str, Path]:
    """All that are there, in order: by "2.15" those of a wheel, by "" the one built from source."""
    found = sorted((_version(path.name.split("torch")[1]), path) for path in _files("_C_torch_*"))
    named = [(f"{major}.{minor}", path) for (major, minor), path in found]
    return dict([*named, *(("", path) for path in _files("_C.*")[:1])])


def _advice(own: tuple[int, int], known: list[str]) -> str:
    """What to do where what is installed does not serve PyTorch ``own``. ``known``: a wheel's."""
    if not known:
        return "install the package again"
    if own < _version(known[0]):
        return "upgrade PyTorch"
    return "install a newer wheel, or in a clone run pip install --no-build-isolation ."


def _not_built() -> str:
    if sys.platform != "linux":
        return f"it is built on Linux only, not on {sys.platform}, unless RRD_BUILD=1 asks for it"
    if (FOLDER.parent / "setup.py").exists():
        return (
            f"{FOLDER} has the sources, in which it has not been built; run make setup there, or "
            f"start Python in another folder to use an installed package"
        )
    return f"it has not been built in {FOLDER}; install the package again"


def load() -> tuple[Path | None, str | None]:
    """Loads the library for this PyTorch.

    Returns its path, and ``None``, or why it is of no use. The path is ``None`` if there is none.
    """
    own, found = _version(torch.__version__), libraries()
    known = [version for version in found if version]
    advice = _advice(own, known)
    path = found.get("{}.{}".format(*own)) or found.get("")
    if path is None and not known:
        return None, _not_built()
    if path is None:
        span = f"PyTorch {known[0]} to {known[-1]}"
        return None, f"this wheel has it for {span}, not for {torch.__version__}: {advice}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        reason = error.__cause__ or error  # PyTorch's own error names the library alone
        return path, f"{reason}; if it was built against another PyTorch, {advice}"
    built = torch.ops.rrd_kernels.torch_version()
    if _version(built) != own:
        return path, (
            f"it was built against PyTorch {built}, but this is PyTorch {torch.__version__}; "
            f"{advice}"
        )
    return path, None
