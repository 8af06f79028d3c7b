"""Measures all cases, or some: ``python -m benchmarks --help``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.cases import CASES, Case
from benchmarks.measure import busy_cores, matmul_rate
from benchmarks.run import run_case
from benchmarks.table import print_table

DEVICE = torch.device("cpu")

#: Cores that other work may keep busy without a warning.
NEGLIGIBLE_WORK = 0.1

EXPLANATION = """\
A step is: enqueue the teacher's rows, mean loss, gradient with respect to the
student's embeddings (D = 128). Each implementation must first agree with the
float64 reference; then they take turns.

  GFLOP/s            8·B·D·K operations, counted alike for all implementations
  % of mm            share of what torch.mm reaches in that dtype in the same run
  × eager, × SDPA    how many times faster than that peer, median over the rounds
  extra MiB          peak of one step above its inputs and the memory
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time and memory of a training step: published eager code, SDPA, rrd_kernels.",
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cases",
        default="",
        metavar="TEXT",
        help="only the cases whose name contains TEXT, such as bfloat16 or 256x65536 "
        "(default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=8.0,
        help="how long to time each case, but seven rounds at least (default: %(default)g)",
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
    wanted = arguments.cases.replace("x", "×")
    arguments.cases = [case for case in CASES if wanted in case.name]
    if not arguments.cases:
        names = ", ".join(case.name for case in CASES)
        parser.error(f"no case's name contains {wanted!r}; there are {names}")
    return arguments


def look_at_machine(cases: Sequence[Case]) -> record.Machine:
    busy = busy_cores()
    if busy is not None and busy > NEGLIGIBLE_WORK:
        report(f"other work keeps {busy:.1f} of {os.cpu_count()} cores busy: times will be off")
    names = dict.fromkeys(case.dtype_name for case in cases)
    rates = {name: matmul_rate(getattr(torch, name), DEVICE) for name in names}
    return record.Machine(rates, busy)


def report(progress: str) -> None:
    # Not a spinner: its thread would take a core from what is being timed.
    print(progress, file=sys.stderr, flush=True)


def main() -> None:
    arguments = parse_arguments()
    cases: list[Case] = arguments.cases
    report("torch.mm")
    before = look_at_machine(cases)
    rows = []
    for case in cases:
        report(case.name)
        rows += run_case(case, arguments.seconds, DEVICE, memory=not arguments.no_memory)
    report("torch.mm again")
    after = look_at_machine(cases)
    rates = {name: (rate, after.mm_rate[name]) for name, rate in before.mm_rate.items()}
    print_table(rows, {name: max(both) for name, both in rates.items()})
    for name, (first, second) in rates.items():
        print(
            f"torch.mm in {name}: {first / 1e9:.0f} GFLOP/s before, {second / 1e9:.0f} after; "
            "the larger counts as 100 %"
        )
    path = record.write(arguments.output or record.default_path(), rows, before, after)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
