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
from benchmarks.run import Row

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Machine:
    """How fast the machine was at one moment, and how much of it was taken."""

    mm_rate: Mapping[str, float]
    busy_cores: float | None

    def as_record(self) -> dict[str, Any]:
        gflops = {dtype: rate / 1e9 for dtype, rate in self.mm_rate.items()}
        return {"mm_gflops": gflops, "busy_cores": self.busy_cores}


def cpu_slug() -> str:
    """The machine as part of a file's name, such as ``cpu-2-cores-avx512-amx``."""
    parts = [f"cpu-{torch.get_num_threads()}-cores", torch.backends.cpu.get_cpu_capability()]
    if any(kernel.startswith("amx") for kernel in torch.ops.rrd_kernels.cpu_kernels()):
        parts.append("amx")
    return "-".join(parts).lower()


def environment() -> dict[str, Any]:
    """What the figures depend on, and nothing that tells one machine from another of its kind."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    kernels = torch.ops.rrd_kernels.cpu_kernels()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "rrd_kernels": rrd_kernels.__version__,
        },
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "kernels": dict(zip(("float64", "float32", "bfloat16"), kernels, strict=True)),
    }


def _git(*arguments: str) -> str | None:
    """The command's output, or ``None`` where this is not a git checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def default_path() -> Path:
    return RESULTS / f"{cpu_slug()}-{datetime.date.today().isoformat()}.json"


def write(path: Path, rows: Sequence[Row], before: Machine, after: Machine) -> Path:
    """Writes a new file and returns its path: ``path``, or with -2, -3, ... where that exists.

    Args:
        path: where to; folders are made.
        rows: of one run.
        before, after: the machine around it.
    """
    record = {
        **environment(),
        "machine": {"before": before.as_record(), "after": after.as_record()},
        "rows": [{**asdict(row), "gflops": row.rate / 1e9} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    target, number = path, 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.stem}-{number}{path.suffix}")
    target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return target
