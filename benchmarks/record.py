"""The JSON record of a run: the figures, and what they were measured with."""

import datetime
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import rrd_kernels
from benchmarks import hardware
from benchmarks.breakdown import Breakdown
from benchmarks.ceilings import Bound, Ceilings
from benchmarks.host_time import HostProfile
from benchmarks.paths import RESULTS, ROOT, write_whole
from benchmarks.run import Result, Row
from benchmarks.scaling import Series
from benchmarks.targets import Outcome


@dataclass(frozen=True)
class Machine:
    """How fast the machine was at one moment, and how much of it was taken."""

    #: Operations per second of torch.mm, by format.
    mm_rate: Mapping[str, float]
    #: Bytes per second, read plus written.
    copy_rate: float
    busy_cores: float | None
    #: Clocks, and of a GPU power and temperature, as they were found.
    state: Mapping[str, Any]

    def as_record(self) -> dict[str, Any]:
        return {
            "mm_gflops": {name: rate / 1e9 for name, rate in self.mm_rate.items()},
            "copy_gbytes_per_second": self.copy_rate / 1e9,
            "busy_cores": self.busy_cores,
            "state": self.state,
        }


@dataclass
class Measured:
    """What a run has measured so far."""

    before: Machine
    after: Machine | None = None
    results: list[Result] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    host_time: HostProfile | None = None
    breakdowns: list[Breakdown] = field(default_factory=list)
    #: Of whole cases and parts, such as "the host's time: RuntimeError: ...".
    failures: list[str] = field(default_factory=list)

    @property
    def ceilings(self) -> Ceilings:
        return Ceilings.of_record({"machine": self._machine()})

    def as_record(self) -> dict[str, Any]:
        ceilings = self.ceilings
        return {
            "machine": self._machine(),
            "rows": [of_result(result, ceilings) for result in self.results],
            "scaling": [series.as_record() for series in self.series],
            "host_time": asdict(self.host_time) if self.host_time else None,
            "breakdowns": [asdict(breakdown) for breakdown in self.breakdowns],
            "failures": self.failures,
        }

    def _machine(self) -> dict[str, Any]:
        looks = {"before": self.before, "after": self.after}
        return {name: look.as_record() if look else None for name, look in looks.items()}


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
        "cache_bytes": hardware.cache_bytes(device),
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


def default_path(device: torch.device, quick: bool = False) -> Path:
    """That of sizes which mean nothing is one that git ignores."""
    today = datetime.date.today().isoformat()
    return RESULTS / f"{hardware.slug(device)}-{'quick-' if quick else ''}{today}.json"


def write(
    path: Path,
    environment: Mapping[str, Any],
    measured: Measured,
    outcomes: Sequence[Outcome],
) -> None:
    """Writes a file, whole or not at all, in place of one that is there.

    Args:
        path: where to; folders are made.
        environment: of the run.
        measured: all of it, or what there is of a run that was cut short.
        outcomes: of the targets, if the device has any.
    """
    record = {**environment, **measured.as_record()}
    if outcomes:
        record["targets"] = [{**asdict(outcome), "met": outcome.met} for outcome in outcomes]
    write_whole(path, record)


def of_result(result: Result, ceilings: Ceilings) -> dict[str, Any]:
    record = asdict(result)
    if isinstance(result, Row):
        if result.rate is not None:
            record["gflops"] = result.rate / 1e9
        if bound := ceilings.bound(result.case):
            record["ceiling"] = _ceiling(bound, result.best_seconds)
        for name, part in result.parts.items():
            if bound := ceilings.bound(result.case, part.work):
                record["parts"][name]["ceiling"] = _ceiling(bound, part.seconds.median)
    return record


def _ceiling(bound: Bound, seconds: float) -> dict[str, Any]:
    return {"bound": bound.by, "seconds": bound.seconds, "share": bound.share(seconds)}


def read(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # of the JSON, or of the text's encoding
        raise ValueError(f"{path} is no JSON: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """A record, or the one inside what ``make gpu-check`` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, a record of several ranks too.
    """
    record = read(path)
    record = _of_stages(record) if isinstance(record, dict) else {}
    rows = record.get("rows")
    if isinstance(rows, list) and any("gather" in row for row in rows):
        raise ValueError(
            f"{path} is a record of several ranks, as python -m benchmarks.distributed --measure "
            "writes it; what is wanted is one of benchmarks.report"
        )
    if not {"rows", "machine", "versions"} <= record.keys():
        raise ValueError(f"{path} is not a record of this benchmark")
    return record


def _of_stages(record: dict[str, Any]) -> dict[str, Any]:
    """The last of the records that the stages of ``make gpu-check`` wrote, or what is no such."""
    stages = record.get("stages", {}).values()
    return next((stage["record"] for stage in reversed(stages) if "record" in stage), record)


def digest(record: Mapping[str, Any]) -> str:
    """The same for equal records, however their files are laid out."""
    text = json.dumps(record, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
