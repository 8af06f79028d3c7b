"""The JSON record of a run: the figures, and what they were measured with."""

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import rrd_kernels
from benchmarks import hardware
from benchmarks.paths import RESULTS, ROOT, unused
from benchmarks.run import Result, Row
from benchmarks.targets import Outcome


@dataclass(frozen=True)
class Machine:
    """How fast the machine was at one moment, and how much of it was taken."""

    #: Of torch.mm, by format.
    mm_rate: Mapping[str, float]
    busy_cores: float | None
    #: Bytes per second, and what nvidia-smi says, of a GPU.
    copy_rate: float | None = None
    gpu_state: Mapping[str, str] | None = None

    def as_record(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "mm_gflops": {name: rate / 1e9 for name, rate in self.mm_rate.items()},
            "busy_cores": self.busy_cores,
        }
        if self.copy_rate is not None:
            record |= {"copy_gbytes_per_second": self.copy_rate / 1e9, "gpu_state": self.gpu_state}
        return record


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    record: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "rrd_kernels": rrd_kernels.__version__,
        },
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
        "threads": torch.get_num_threads(),
        "cpu": hardware.cpu_model(),
    }
    if device.type == "cuda":
        record["versions"] |= hardware.gpu_versions()
        return record | {"gpu": hardware.gpu(device)}
    kernels = torch.ops.rrd_kernels.cpu_kernels()
    names = ("float64", "float32", "bfloat16")
    return record | {"kernels": dict(zip(names, kernels, strict=True))}


def _git(*arguments: str) -> str | None:
    """The command's output, or ``None`` where this is not a git checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def default_path(device: torch.device) -> Path:
    return RESULTS / f"{hardware.slug(device)}-{datetime.date.today().isoformat()}.json"


def write(
    path: Path,
    environment: Mapping[str, Any],
    results: Sequence[Result],
    before: Machine,
    after: Machine | None,
    outcomes: Sequence[Outcome],
) -> Path:
    """Writes a new file and returns its path: ``path``, or with -2, -3, ... where that exists.

    Args:
        path: where to; folders are made.
        environment: of the run.
        results: of one run.
        before, after: the machine around it; no ``after`` if the run was cut short.
        outcomes: of the targets, if the device has any.
    """
    record = {
        **environment,
        "machine": {
            "before": before.as_record(),
            "after": None if after is None else after.as_record(),
        },
        "rows": [of_result(result) for result in results],
    }
    if outcomes:
        record["targets"] = [{**asdict(outcome), "met": outcome.met} for outcome in outcomes]
    path.parent.mkdir(parents=True, exist_ok=True)
    target = unused(path)
    target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return target


def of_result(result: Result) -> dict[str, Any]:
    record = asdict(result)
    rate = result.rate if isinstance(result, Row) else None
    return record if rate is None else {**record, "gflops": rate / 1e9}
