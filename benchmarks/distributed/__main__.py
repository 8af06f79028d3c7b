"""Prints the model's table, or measures: ``python -m benchmarks.distributed --help``."""

import argparse
import json
from datetime import date
from pathlib import Path

import torch

from benchmarks import hardware
from benchmarks.distributed import page
from benchmarks.distributed.large import large
from benchmarks.distributed.measure import measure
from benchmarks.measure import busy_cores
from benchmarks.paths import unused


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description="A training step on several ranks: the model's tables for up to 1024 GPUs, and "
        "its check against processes on this machine.",
    )
    parser.add_argument(
        "--measure",
        type=Path,
        metavar="RECORD",
        help="measures at W = 1, 2 and 4 over gloo (about two minutes) and writes this file, or "
        "one with a number where it exists",
    )
    parser.add_argument(
        "--page", type=Path, metavar="RECORD", help="puts a record into docs/scaling.md"
    )
    parser.add_argument(
        "--large",
        type=int,
        metavar="K",
        help="makes a bfloat16 memory of K rows over two processes and trains on it",
    )
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.measure is not None:
        busy = busy_cores()
        record = measure() | {
            "date": date.today().isoformat(),
            "cpu": hardware.cpu_model(),
            "torch": torch.__version__,
            "busy_cores": busy,
        }
        path = unused(options.measure)
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(page.checked(record))
        print(f"written to {path}")
        if busy is not None and busy > 0.1:
            print(f"other work keeps {busy:.1f} cores busy: these times are not to be kept")
    if options.page is not None:
        page.write(options.page.resolve())
    if options.large is not None:
        print(large(options.large))
    if options.measure is None and options.page is None and options.large is None:
        print(page.simulated())
        print(page.crossings())


if __name__ == "__main__":
    main()
