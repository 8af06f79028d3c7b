"""The JSON record of a run: ``rows`` of figures, see :mod:`benchmarks.measuring.run`, and what they
were measured with, see :mod:`benchmarks.measuring.hardware`: its environment; ``machine``, its
rates before and after; ``command``; ``took``, seconds; ``failures`` of whole parts."""

import datetime
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring.hardware import ROOT

RESULTS = ROOT / "benchmarks" / "results"

Record = dict[str, Any]


def default_path(device: torch.device, of: str = "") -> Path:
    """Such as nvidia-h200-2026-11-29.json, in the results; git ignores those ``of`` "quick-"."""
    if device.type == "cuda":  # where nothing may be built yet
        name = torch.cuda.get_device_name(device).lower()
    else:
        name = f"cpu-{torch.get_num_threads()}-cores-{torch.ops.rrd_kernels.cpu_kernels()[-1]}"
    name = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return RESULTS / f"{name}-{of}{datetime.date.today().isoformat()}.json"


def new_record(path: Path) -> Path:
    """``path``, or with -2, -3, ... where that or its tables exist; a ValueError if it is not the
    name of a JSON file."""
    if path.suffix != ".json":
        raise ValueError(f"{path} is not the name of a .json file; give one, such as record.json")
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    names = itertools.chain([path], numbered)
    return next(name for name in names if not (name.exists() or name.with_suffix(".md").exists()))


def write_whole(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, in place of one that is there; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    new.replace(path)


def load(path: Path) -> Record:
    """A record, or the last one inside what ``make gpu-check`` wrote; a ValueError if it is
    something else, a record of several ranks too, and an OSError if it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # of the JSON, or of the text's encoding
        raise ValueError(f"{path} is not JSON: {error}") from error
    stages = found.get("stages", {}).values() if isinstance(found, dict) else ()
    record = [found, *(stage["record"] for stage in stages if "record" in stage)][-1]
    rows = record.get("rows") if isinstance(record, dict) else None
    if not rows or not all("figure" in row for row in rows) or "machine" not in record:
        raise ValueError(f"{path} is not a record of benchmarks.report, such as make bench writes")
    return record
