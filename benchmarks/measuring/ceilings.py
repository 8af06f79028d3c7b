"""How fast the machine is: the rates of a large torch.mm and of a large copy."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cases.sizes import Case
from benchmarks.measuring import hardware
from benchmarks.measuring.clocks import float32_matmul_precision, interleaved_times


def matmul_rate(case: Case, device: torch.device, sizes: Sequence[int], seconds: float) -> float:
    """Operations per second of torch.mm on square matrices in the format of ``case``: the best
    median among ``sizes``."""
    calls = {}
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(case.dtype) for _ in range(2))
        calls[str(size)] = lambda a=a, b=b: torch.mm(a, b)
    with float32_matmul_precision(case.matmul_precision):
        times = interleaved_times(calls, device, seconds, min_rounds=3)
    return max(2 * int(size) ** 3 / statistics.median(taken) for size, taken in times.items())


def copy_rate(device: torch.device, size: int, seconds: float) -> float:
    """Bytes per second, read plus written, of copying ``size`` bytes from the device to itself."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = interleaved_times({"copy": lambda: target.copy_(source)}, device, seconds)
    return 2 * size / statistics.median(times["copy"])


def look_at_machine(cases: Sequence[Case], device: torch.device, quick: bool) -> dict[str, Any]:
    """Its rates in the formats of ``cases``, and what other work takes of it, as a record has
    them."""
    busy = hardware.busy_cores()
    sizes, copied, seconds = [2048, 4096], 1 << 28, 1.0
    if quick:
        sizes, copied, seconds = [256], 1 << 20, 0.01
    elif device.type != "cpu":
        sizes, copied, seconds = [4096, 8192], 1 << 30, 0.3
    formats = {case.format: case for case in cases}
    return {
        "mm_gflops": {
            name: matmul_rate(case, device, sizes, seconds) / 1e9 for name, case in formats.items()
        },
        "copy_gbytes_per_second": copy_rate(device, copied, seconds) / 1e9,
        "busy_cores": busy,
    }
