"""Prints the model's tables, or measures: ``python -m benchmarks.distributed --help``."""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from benchmarks.distributed import page
from benchmarks.distributed.measure import measure
from benchmarks.measure import busy_cores
from benchmarks.record import environment


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed",
        description="A training step on several ranks: without options, the model's tables.",
    )
    add = parser.add_argument
    add("--card", type=Path, metavar="RECORD", help="tables of a device that make bench measured")
    add("--measure", type=Path, metavar="RECORD", help="measures in two minutes, and writes a file")
    add("--page", type=Path, nargs="*", metavar="RECORD", help="puts tables into docs/scaling.md")
    options = parser.parse_args()
    try:
        if options.measure:
            if options.measure.exists() or not options.measure.parent.is_dir():
                raise ValueError(f"{options.measure} exists, or its folder does not")
            command = shlex.join(["python", "-m", "benchmarks.distributed", *sys.argv[1:]])
            found = {"command": command} | environment(torch.device("cpu"))
            found = found | {"busy_cores": busy_cores()} | measure()  # cores that other work keeps
            options.measure.write_text(json.dumps(found, indent=2) + "\n")
            print(page.of_processes(found)["measured"])
        if options.page is not None:
            page.write(options.page)
        elif not options.measure:
            for name, text in page.of_model(options.card).items():
                print(f"{name}\n\n{text}")
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
