"""The JSON record of a run: flat rows of figures, and what they were measured with.

Keys: what :func:`environment` says; ``command``; ``took``, seconds; ``machine``, its rates before
and after, see :mod:`benchmarks.measuring.ceilings`; ``failures`` of whole parts; ``rows``, see
:mod:`benchmarks.measuring.run`.
"""

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import rrd_kernels
from benchmarks.measuring import hardware

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Record = dict[str, Any]


def environment(device: torch.device) -> Record:
    """What the figures depend on."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    versions = {"torch": torch.__version__, "rrd_kernels": rrd_kernels.__version__}
    record: Record = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
        "threads": torch.get_num_threads(),
        "cpu": hardware.cpu_model(),
        "cache_bytes": hardware.cache_bytes(device),
    }
    if device.type == "cuda":
        record["versions"] |= hardware.gpu_versions()
        return record | {"gpu": hardware.gpu(device)}
    kernels = torch.ops.rrd_kernels.cpu_kernels()
    names = ("float64", "float32", "bfloat16")
    return record | {"kernels": dict(zip(names, kernels, strict=True))}


def _git(*arguments: str) -> str | None:
    """The command's output; ``None`` where this is not a git checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def default_path(device: torch.device, quick: bool = False) -> Path:
    """Git ignores the quick ones."""
    today = datetime.date.today().isoformat()
    return RESULTS / f"{hardware.slug(device)}-{'quick-' if quick else ''}{today}.json"


def new_record(path: Path) -> Path:
    """``path``, or with -2, -3, ... where that or its tables exist.

    Raises:
        ValueError: it is not the name of a JSON file.
    """
    if path.suffix != ".json":
        raise ValueError(f"{path} is not the name of a .json file")
    target, number = path, 1
    while target.exists() or target.with_suffix(".md").exists():
        number += 1
        target = path.with_stem(f"{path.stem}-{number}")
    return target


def write_whole(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, in place of one that is there; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    new.replace(path)


def read(path: Path) -> Any:
    """What a JSON file holds; a ``ValueError`` where it is none."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # of the JSON, or of the text's encoding
        raise ValueError(f"{path} is no JSON: {error}") from error


def load(path: Path) -> Record:
    """A record, or the last one inside what ``make gpu-check`` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, a record of several ranks too.
    """
    found = read(path)
    stages = found.get("stages", {}).values() if isinstance(found, dict) else ()
    record = [found, *(stage["record"] for stage in stages if "record" in stage)][-1]
    rows = record.get("rows") if isinstance(record, dict) else None
    if not rows or not all("figure" in row for row in rows) or "machine" not in record:
        raise ValueError(f"{path} is not a record of benchmarks.report")
    return record
