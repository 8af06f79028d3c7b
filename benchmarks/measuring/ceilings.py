"""How fast the machine is: the rates of a large torch.mm and of a large copy."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.cases.sizes import Case
from benchmarks.measuring import hardware
from benchmarks.measuring.clocks import float32_matmul_precision, interleaved_times


def look_at_machine(cases: Sequence[Case], device: torch.device, quick: bool) -> dict[str, Any]:
    """Its rates in the formats of ``cases``, a copy's read plus written, and what other work takes
    of it, as a record has them."""
    busy = hardware.busy_cores()
    size, copied = (4096, 1 << 28) if device.type == "cpu" else (8192, 1 << 30)
    if quick:
        size, copied = 256, 1 << 20
    operations = {}
    for case in {case.format: case for case in cases}.values():
        a, b = (torch.randn(size, size, device=device).to(case.dtype) for _ in range(2))
        with float32_matmul_precision(case.matmul_precision):
            operations[case.format] = 2 * size**3 / _seconds(partial(torch.mm, a, b), device) / 1e9
    source = torch.ones(copied // 4, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    copy_rate = 2 * copied / _seconds(copy, device) / 1e9
    return {
        "mm_gflops": operations,
        "copy_gbytes_per_second": copy_rate,
        "busy_cores": busy,
        "state": hardware.state(device),  # right after: that of a machine at work
    }


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    return statistics.median(interleaved_times({"": call}, device, 0.3, min_rounds=3)[""])
