"""What a machine is, and nothing that tells it from another of its kind; and how fast it is."""

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rrd_kernels
from benchmarks.cases.sizes import Case
from benchmarks.measuring.clocks import interleaved, products_in, timer_of

ROOT = Path(__file__).parents[2]
STATE = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"
CPUS = "/sys/devices/system/cpu"


def environment(device: torch.device) -> dict[str, Any]:
    """What figures depend on."""
    git = ("git", "-C", str(ROOT))
    named = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    record = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "rrd_kernels": rrd_kernels.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": next((found.version for found in distributions(name="triton")), None),
        },
        "commit": _output(*git, "rev-parse", "HEAD"),
        "uncommitted_changes": _output(*git, "status", "--porcelain", "--untracked-files=no"),
        "threads": torch.get_num_threads(),
        "cpu": named[0].partition(":")[2].strip() if named else platform.machine(),
        "cache_bytes": cache_bytes(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        asked = ("name", "major", "minor", "multi_processor_count", "total_memory")
        return record | {"gpu": {name: getattr(properties, name) for name in asked}}
    names = ("float64", "float32", "bfloat16")
    return record | {"kernels": dict(zip(names, torch.ops.rrd_kernels.cpu_kernels(), strict=True))}


def cache_bytes(device: torch.device) -> int | None:
    """Of the device's last cache; ``None`` where it is not said. Of a CPU all last caches of the
    cores of this process: each reads through its own cluster's, and they share out a memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    levels: dict[int, dict[str, int]] = {}
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        for folder in Path(f"{CPUS}/cpu{cpu}/cache").glob("index*"):
            names = ("level", "type", "size", "shared_cpu_list")
            level, kind, size, shared = ("".join(_lines(f"{folder}/{name}")) for name in names)
            if kind != "Instruction" and size.endswith("K"):
                levels.setdefault(int(level), {})[shared] = 1024 * int(size.removesuffix("K"))
    return sum(levels[max(levels)].values()) if levels else None


def available_memory() -> int:
    """Bytes that can be allocated before Linux has to swap or to end a process."""
    memory = dict(line.split(":") for line in _lines("/proc/meminfo"))
    available = int(memory["MemAvailable"].split()[0]) * 1024
    # A container's (cgroup v2), in which /proc/meminfo is the whole machine's; files can go.
    limit, used = ("".join(_lines(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():
        fields = dict(line.split() for line in _lines("/sys/fs/cgroup/memory.stat"))
        files = sum(int(fields.get(name, 0)) for name in ("active_file", "inactive_file"))
        available = min(available, int(limit) - int(used) + files)
    return available


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other work keeps busy while this process sleeps; ``None`` but on Linux. With
    one taken, a step of many parallel loops, each with a barrier, takes many times as long."""
    ticks = []
    for pause in (0.0, seconds):
        time.sleep(pause)
        of_all = [*_lines("/proc/stat"), ""][0].split()  # cpu user nice system idle
        ticks.append(sum(map(int, of_all[1:4])))
    return (ticks[1] - ticks[0]) / os.sysconf("SC_CLK_TCK") / seconds if ticks[0] else None


def look_at_machine(cases: Sequence[Case], device: torch.device, quick: bool) -> dict[str, Any]:
    """The rates of a large torch.mm in the formats of ``cases`` and of a copy, bytes read plus
    written; and what other work takes of the machine."""
    found: dict[str, Any] = {"busy_cores": busy_cores(), "mm_gflops": {}}
    large = {"cpu": (4096, 1 << 28), "cuda": (8192, 1 << 30)}[device.type]
    size, copied = (256, 1 << 20) if quick else large

    def seconds(call: Callable[[], object]) -> float:
        return float(np.median(interleaved({"": timer_of(call, device)}, 0.3, 3)[""]))

    for case in {case.format: case for case in cases}.values():
        a, b = (torch.randn(size, size, device=device).to(case.dtype) for _ in range(2))
        with products_in(case.format):
            found["mm_gflops"][case.format] = 2e-9 * size**3 / seconds(partial(torch.mm, a, b))
    source = torch.ones(copied // 4, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    found["copy_gbytes_per_second"] = 2e-9 * copied / seconds(copy)
    if device.type == "cuda":  # right after: the driver, clocks and power of a machine at work
        # Its numbers are not those of CUDA, which CUDA_VISIBLE_DEVICES changes.
        identity = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
        found["state"] = _output("nvidia-smi", identity, f"--query-gpu={STATE}", "--format=csv")
    return found


def _output(*command: str) -> str | None:
    """What a command prints; ``None`` where there is none, or it fails."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _lines(path: str) -> list[str]:
    """None where there is no such file."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
