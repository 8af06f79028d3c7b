"""What a machine is called and made of, and nothing that tells it from another of its kind."""

import importlib.util
import os
import platform
import re
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

#: What nvidia-smi is asked.
STATE = "driver_version clocks.sm clocks.mem clocks.max.sm power.draw power.limit temperature.gpu"
CGROUP = "/sys/fs/cgroup"
CPUS = "/sys/devices/system/cpu"


def slug(device: torch.device) -> str:
    """Part of a file's name, such as ``cpu-2-cores-avx512-amx`` or ``nvidia-h200``."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    parts = [f"cpu-{torch.get_num_threads()}-cores", torch.backends.cpu.get_cpu_capability()]
    half = torch.ops.rrd_kernels.cpu_kernels()[-1]  # what computes bfloat16 products
    if half.endswith("_bf16"):
        parts.append("amx" if half.startswith("amx") else "bf16")
    return "-".join(parts).lower()


def cpu_model() -> str:
    lines = _lines("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def cache_bytes(device: torch.device) -> int | None:
    """Of the device's last cache, which stands before its memory; ``None`` where it is not said.

    Of a CPU all last caches of the cores that this process may use: each core reads through its own
    cluster's, and the cores share out a memory.
    """
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
    limit, used = ("".join(_lines(f"{CGROUP}/memory.{name}")) for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():
        fields = dict(line.split() for line in _lines(f"{CGROUP}/memory.stat"))
        files = sum(int(fields.get(name, 0)) for name in ("active_file", "inactive_file"))
        available = min(available, int(limit) - int(used) + files)
    return available


def _lines(path: str) -> list[str]:
    """None where there is no such file."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
    }


def gpu_versions() -> dict[str, str | None]:
    triton = version("triton") if importlib.util.find_spec("triton") else None
    return {"cuda": torch.version.cuda, "triton": triton}


def state(device: torch.device) -> dict[str, str]:
    """A GPU's driver, clocks, power and temperature as they are found; empty where nvidia-smi does
    not say."""
    if device.type != "cuda":
        return {}
    # Its numbers are not those of CUDA, which CUDA_VISIBLE_DEVICES changes.
    identity = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", identity, f"--query-gpu={STATE.replace(' ', ',')}"]
    command.append("--format=csv,noheader")
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(STATE.split(), values, strict=False))


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other work keeps busy while this process sleeps; ``None`` but on Linux.

    Threads that wait for one another at a barrier wait for whoever holds the other core: with one
    core taken, a step of many small parallel loops takes many times as long.
    """
    if not _lines("/proc/stat"):
        return None
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _busy_ticks() -> int:
    return sum(map(int, _lines("/proc/stat")[0].split()[1:4]))  # cpu user nice system idle
