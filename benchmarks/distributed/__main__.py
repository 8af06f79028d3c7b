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
from benchmarks.distributed.large import LEAST, large
from benchmarks.distributed.measure import measure
from benchmarks.measure import busy_cores
from benchmarks.paths import new_record, place


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description="A training step on several ranks: the model's tables for up to 1024 GPUs, and "
        "its check against processes on this machine.",
    )
    parser.add_argument(
        "--measure",
        type=Path,
        metavar="RECORD",
        help="measures at W = 1, 2 and 4 over gloo (about two minutes) and writes this file, "
        "NAME.json, or one with a number where it exists",
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="RECORD",
        help="prints the tables with the constants of one device that a record of make bench has "
        "measured, in place of the assumed ones; goes with no other option",
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
        help=f"makes a bfloat16 memory of K rows, {LEAST} at least, over two processes and trains "
        "on it",
    )
    options = parser.parse_args(arguments)
    others = (options.measure, options.page, options.large)
    if options.card is not None and any(other is not None for other in others):
        parser.error("--card prints its tables, and goes with no other option")
    if options.large is not None and options.large < LEAST:
        parser.error(f"--large must be the {LEAST} rows of a step at least; got {options.large}")
    try:
        _settle_paths(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return options


def _settle_paths(options: argparse.Namespace) -> None:
    """Where ``--measure`` can write, and that ``--page`` can show what it names.

    Raises:
        OSError, ValueError: nowhere, or it is no record, lies outside the repository, or is not
            what is measured.
    """
    options.page = options.page and [path.resolve() for path in options.page]
    shown, wanted = options.page or [], options.measure and options.measure.resolve()
    for path in shown:
        place(path)
        if path != wanted:
            record.read(path)
    if wanted is not None:
        if wanted in shown and wanted.exists():
            raise ValueError(f"{options.measure} exists: --page would not show what is measured")
        options.measure = new_record(options.measure)


def measured(command: Sequence[str], busy: float | None, **settings: Any) -> dict[str, Any]:
    """The record of ``measure(**settings)``, with what it depends on."""
    environment = record.environment(torch.device("cpu")) | {
        "command": shlex.join(command),
        "threads": 1,  # to each process
        "busy_cores": busy,
    }
    return environment | measure(**settings) | {"state": hardware.cpu_state()}


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(given)
    if options.measure is not None:
        busy = busy_cores()
        found = measured(["python", "-m", "benchmarks.distributed", *given], busy)
        options.measure.write_text(json.dumps(found, indent=2) + "\n")
        print(page.checked(found))
        print(page.headers(found))
        print(f"written to {options.measure}")
        if busy is not None and busy > 0.1:
            print(f"other work keeps {busy:.1f} cores busy: these times are not to be kept")
    if options.page is not None:
        try:
            page.write(options.page)
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
