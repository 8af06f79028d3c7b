"""Prints the model's table, or measures: ``python -m benchmarks.distributed --help``."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import hardware, record
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
        "--card",
        type=Path,
        metavar="RECORD",
        help="prints the tables with the constants of one device that a record of make bench has "
        "measured, in place of the assumed ones",
    )
    parser.add_argument(
        "--page",
        type=Path,
        nargs="+",
        metavar="RECORD",
        help="puts records into docs/scaling.md: one of --measure, one of make bench, or both",
    )
    parser.add_argument(
        "--large",
        type=int,
        metavar="K",
        help="makes a bfloat16 memory of K rows over two processes and trains on it",
    )
    return parser.parse_args()


def measured(command: Sequence[str], busy: float | None, **settings: Any) -> dict[str, Any]:
    """The record of ``measure(**settings)``, with what it depends on."""
    environment = record.environment(torch.device("cpu")) | {
        "command": shlex.join(command),
        "threads": 1,  # to each process
        "busy_cores": busy,
    }
    return environment | measure(**settings) | {"state": hardware.cpu_state()}


def main() -> None:
    options = parse_arguments()
    if options.measure is not None:
        busy = busy_cores()
        found = measured(["python", "-m", "benchmarks.distributed", *sys.argv[1:]], busy)
        path = unused(options.measure)
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(page.checked(found))
        print(f"written to {path}")
        if busy is not None and busy > 0.1:
            print(f"other work keeps {busy:.1f} cores busy: these times are not to be kept")
    if options.page is not None:
        try:
            page.write([path.resolve() for path in options.page])
        except (OSError, ValueError) as error:
            sys.exit(f"docs/scaling.md stays as it is: {error}")
    if options.large is not None:
        print(large(options.large))
    if options.measure is None and options.page is None and options.large is None:
        try:
            tables = page.tables(options.card)
        except (OSError, ValueError) as error:
            sys.exit(f"--card: {error}")
        for name, table in tables.items():
            print(f"{page.CAPTIONS[name]}\n\n{table}")


if __name__ == "__main__":
    main()
