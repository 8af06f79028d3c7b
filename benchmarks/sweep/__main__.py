"""Times other plans than the table's for the step's three kernels, on a GPU of compute capability
9.0. Each must first agree with the float64 reference; then all of a size take turns, in the replay
of a CUDA graph, by the device's clock."""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases.agreement import agreement
from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import PublishedEager
from benchmarks.measuring import cuda, hardware
from benchmarks.measuring.clocks import (
    Spread,
    float32_matmul_precision,
    in_blocks,
    interleaved,
    median_ratio,
)
from benchmarks.measuring.outcomes import first_line
from benchmarks.measuring.turns import turns, with_twins
from benchmarks.report.record import environment, new_record, write_whole
from benchmarks.sweep import variants as plans
from rrd_kernels.ops import EXTENSION_ERROR
from rrd_kernels.triton.launch import Launch
from rrd_kernels.triton.run import load

GPU = torch.device("cuda")


def measure(
    case: Case, rows: list[dict[str, Any]], save: Callable[[], None], seconds: float, end: float
) -> None:
    """Adds the rows of one size to ``rows``, saves each as soon as it is checked, and times them
    for ``seconds``, seven rounds at least. What is not begun by ``end``, on time.monotonic(), is
    left out; a row's outcome is what failed, its gain how many times faster than the table's plan
    it is, the median over the rounds."""
    state, batches = draw(case, GPU)
    judge = agreement(case, state, batches[0])
    judge.check(PublishedEager(case, state))  # the measure of what the others may err by
    own, timers = {}, {}
    multiprocessors = torch.cuda.get_device_properties(GPU).multi_processor_count
    for variant in plans.variants(case, plans.H200._replace(multiprocessors=multiprocessors)):
        if time.monotonic() > end:
            break
        row: dict[str, Any] = dict.fromkeys(("errors", "resources", "seconds", "gain", "outcome"))
        row |= {"case": asdict(case), "variant": variant.name, "plan": str(variant.plan)}
        rows.append(row)
        try:
            step = plans.VariantStep(case, state, variant)
            row["errors"] = judge.check(step)
            steps = with_twins(step, hardware.cache_bytes(GPU))
            row["resources"] = resources(step.launches(*batches[0])[1][1])
            calls = turns(steps, batches)
            timer = partial(cuda.device_time, cuda.captured(steps, calls).replay)
            own[variant.name], timers[variant.name] = row, in_blocks(timer, GPU)
            row["calls"] = len(calls)  # in the graph
        except Exception as error:  # a compiler's, a driver's: the others can be measured still
            row["outcome"] = first_line(error)
            print(f"{case.name}, {variant.name}: {row['outcome']}")
        save()
    if plans.TABLE in timers:
        times = interleaved(timers, min(seconds, end - time.monotonic()))
        for name, row in own.items():
            row["seconds"] = asdict(Spread.of([taken / row["calls"] for taken in times[name]]))
            row["gain"] = gain = median_ratio(times[plans.TABLE], times[name])
            print(f"{case.name}, {name}: {gain:.2f} × table, {row['resources']}", flush=True)
    save()


def resources(launch: Launch) -> dict[str, int] | None:
    """What the CUDA driver, where there is one, says of a launch's kernel: registers and spilled
    bytes of a thread, shared bytes of a program, programs that a multiprocessor holds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    kernel = load(launch, torch.cuda.current_device())
    if kernel is None:
        raise RuntimeError("csrc/cuda does not launch it")
    function, number = ctypes.c_void_p(kernel.function), ctypes.c_int()
    held = (function, kernel.threads, ctypes.c_size_t(kernel.shared_bytes))
    found = {"shared": kernel.shared_bytes}
    for name, question, about in (
        ("registers", "cuFuncGetAttribute", (4, function)),  # CU_FUNC_ATTRIBUTE_NUM_REGS
        ("spilled", "cuFuncGetAttribute", (3, function)),  # CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES
        ("programs", "cuOccupancyMaxActiveBlocksPerMultiprocessor", held),
    ):
        if error := getattr(driver, question)(ctypes.byref(number), *about):
            raise RuntimeError(f"{question}: the driver's error {error}")
        found[name] = number.value
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, metavar="PATH", required=True, help="a JSON file")
    add("--within", type=float, default=170.0, metavar="SECONDS", help="(default: %(default)s)")
    add("--quick", action="store_true", help="tiny sizes: shows that all of it runs, nothing else")
    chosen = parser.parse_args()
    end = time.monotonic() + chosen.within
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        parser.error("the variants are for GPUs of compute capability 9.0, such as an H200")
    if EXTENSION_ERROR is not None:
        parser.error(f"{EXTENSION_ERROR}; make setup builds it")
    try:
        path = new_record(chosen.output)
    except ValueError as error:
        parser.error(f"--output: {error}")
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    save = partial(write_whole, path, environment(GPU) | {"rows": rows, "failures": failures})
    save()
    for case in plans.QUICK_SIZES if chosen.quick else plans.SIZES:
        if time.monotonic() < end:
            try:
                with float32_matmul_precision(case.matmul_precision):
                    measure(case, rows, save, 0.0 if chosen.quick else 4.0, end)
            except Exception as error:  # of a whole size, as for want of memory
                failures.append(f"{case.name}: {first_line(error)}")
                print(failures[-1])
                save()
    print(f"written to {path}")
    return 1 if failures or any(row["outcome"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
