"""Measures all cases, or some: ``python -m benchmarks --help``."""

import argparse
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import cuda, hardware, record
from benchmarks.cases import AnyCase, Case, cases_for
from benchmarks.figures import CPU_UNITS, CUDA_UNITS, Units
from benchmarks.measure import busy_cores, float32_matmul_precision, matmul_rate
from benchmarks.peers import Fused
from benchmarks.run import Absent, Result, run_case
from benchmarks.targets import Outcome, outcomes, targets_for

#: Cores that other work may keep busy without a warning.
NEGLIGIBLE_WORK = 0.1

#: How long each case is timed, by device.
SECONDS = {"cpu": 8.0, "cuda": 1.0}
#: Square matrices for torch.mm, and how long they are multiplied.
MATMUL_SIZES = {"cpu": (2048, 4096), "cuda": (4096, 8192)}
MATMUL_SECONDS = {"cpu": 2.0, "cuda": 0.5}

EXPLANATION = """\
A step is: enqueue the teacher's rows, mean loss, gradient with respect to the
student's embeddings (D = 128 where no other is named). Of the momentum memory,
which --cases momentum selects, it is: loss over B×K drawn rows of so many,
gradient, update of both memories; and its negatives are drawn for one batch, on
the host, in one process. Each implementation must first agree with the float64
reference; then they take turns.

  ms, µs             of a step, by the host's clock
  µs in a graph      of a step in the replay of a CUDA graph, by the device's clock
  GFLOP/s, TFLOP/s   8·B·D·K operations, counted alike for all implementations,
                     in a graph where there is one
  % of mm            share of what torch.mm reaches in that format in the same run
  × published, × compile, × SDPA
                     how many times faster than that peer by the host's clock,
                     median over the rounds; of several SDPA kernels the fastest
                     counts, the one with 1.00
  extra MiB          peak of one step above its inputs and the memory
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time and memory of a training step: published eager code, torch.compile, "
        "SDPA, rrd_kernels.",
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s",
    )
    parser.add_argument(
        "--cases",
        default="",
        metavar="TEXT",
        help="only the cases whose name contains TEXT, such as bfloat16, momentum or 256x65536 "
        "(default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="how long to time each case, but seven rounds at least (default: {cpu:g}; on a GPU "
        "{cuda:g} without a graph and {cuda:g} in one)".format(**SECONDS),
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where the JSON record goes; a file that exists is kept, and a number added to the "
        "name (default: benchmarks/results/<device>-<date>.json)",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU")
    arguments.device = torch.device(arguments.device)
    if arguments.seconds is None:
        arguments.seconds = SECONDS[arguments.device.type]
    wanted = arguments.cases.replace("x", "×")
    cases = cases_for(arguments.device)
    arguments.cases = [case for case in cases if wanted in case.name]
    if not arguments.cases:
        names = ", ".join(case.name for case in cases)
        parser.error(f"no case's name contains {wanted!r}; there are {names}")
    return arguments


def look_at_machine(cases: Sequence[AnyCase], device: torch.device) -> record.Machine:
    busy = busy_cores()
    if busy is not None and busy > NEGLIGIBLE_WORK:
        report(f"other work keeps {busy:.1f} of {os.cpu_count()} cores busy: times will be off")
    rates = {}
    multiplying = {case.format: case for case in cases if isinstance(case, Case)}
    for case in multiplying.values():
        with float32_matmul_precision(case.matmul_precision):
            rates[case.format] = matmul_rate(
                case.dtype, device, MATMUL_SIZES[device.type], MATMUL_SECONDS[device.type]
            )
    if device.type == "cpu":
        return record.Machine(rates, busy)
    # The state right after the products: that of a GPU at work.
    state = hardware.gpu_state(device)
    return record.Machine(rates, busy, cuda.copy_rate(), state)


def report(progress: str) -> None:
    # Not a spinner: its thread would take a core from what is being timed.
    print(progress, file=sys.stderr, flush=True)


def show(
    results: Sequence[Result],
    reached: Sequence[Outcome],
    units: Units,
    ceilings: Mapping[str, float],
) -> None:
    try:
        from benchmarks import table
    except ModuleNotFoundError as error:  # a machine with PyTorch and little else
        report(f"no tables: {error}")
        return
    for section, of_section in itertools.groupby(results, key=lambda result: result.case.section):
        table.print_table(list(of_section), units, ceilings, title=section)
    if reached:
        table.print_targets(reached)


def main() -> None:
    arguments = parse_arguments()
    cases: list[AnyCase] = arguments.cases
    device: torch.device = arguments.device
    units = CPU_UNITS if device.type == "cpu" else CUDA_UNITS
    environment = record.environment(device)
    report("torch.mm")
    before, after = look_at_machine(cases, device), None
    results: list[Result] = []
    try:
        for case in cases:
            report(case.name)
            results += run_case(case, arguments.seconds, device, memory=not arguments.no_memory)
        report("torch.mm again")
        after = look_at_machine(cases, device)
    finally:  # a GPU that has failed stays so, and what was measured before is kept
        looks = [machine for machine in (before, after) if machine]
        ceilings = {name: max(look.mm_rate[name] for look in looks) for name in before.mm_rate}
        reached = outcomes(results, ceilings, targets_for(device))
        path = arguments.output or record.default_path(device)
        path = record.write(path, environment, results, before, after, reached)
        show(results, reached, units, ceilings)
        for name in ceilings:
            rates = [f"{look.mm_rate[name] / units.operations:.0f}" for look in looks]
            print(
                f"torch.mm in {name}: {rates[0]} {units.rate} before, {rates[-1]} after; "
                "the larger counts as 100 %"
            )
        print(f"written to {path}")
    for result in results:
        if isinstance(result, Absent) and result.implementation == Fused.name:
            sys.exit(f"{result.case.name}: {Fused.name} {result.outcome}, {result.reason}")


if __name__ == "__main__":
    main()
