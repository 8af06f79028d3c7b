"""Prints modelled times of training steps on many ranks, or measured steps beside the model.

Without an option: microseconds per step on H200 with assumed constants. docs/scaling.md explains
the model, its constants and the columns.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.distributed import model
from benchmarks.distributed.measure import measure, of_processes
from benchmarks.distributed.model import GATHERS, Machine, Step
from benchmarks.measuring.breakdown import CASE
from benchmarks.measuring.run import HOST, OURS, STEP
from benchmarks.report.record import Record, load, write_whole
from benchmarks.report.tables import frame, markdown, rates

RANKS = (8, 64, 256, 1024)
SIZES = ((16384, 16), (65536, 64), (2**20, 64), (10**7, 64), (10**8, 64), (2**20, 16))  # K, B


def of_card(record: Record) -> Machine:
    """The device of a record of ``make bench``, in place of an H200."""
    rows = frame(record)
    ours = rows[rows.implementation == OURS].dropna(subset="median")
    steps = ours[(ours.figure == STEP) & (ours.format == "bfloat16")]
    # Older records have kernels among the layers, at another size.
    layers = ours[(ours.figure == HOST) & (ours.case == CASE.name)]
    if steps.empty or layers.empty:
        raise ValueError(
            "the record lacks the bfloat16 cases or the host's time, from which the model's "
            "constants come; make bench measures both"
        )
    card = record["gpu"]["name"] if "gpu" in record else record["cpu"]
    name = f"{card}, bfloat16 (step, flops, read measured, else assumed)"
    flops = (steps.operations / steps["median"]).max()
    return Machine(name, layers["median"].sum(), flops, read=rates(record)[1])


def simulated(machine: Machine) -> pd.DataFrame:
    """Microseconds of bfloat16 steps, in brackets those of messages; and of the header."""
    rows = []
    for (size, batch), ranks in itertools.product(SIZES, RANKS):
        row: dict[str, Any] = {"K": size, "B": batch, "W": ranks}
        for gather in GATHERS:
            step = Step(gather, ranks, size, batch, element=2)
            computing, _, talking = (1e6 * part for part in model.parts(machine, step))
            row[gather] = f"{computing + talking:.0f} ({talking:.0f})"
        rows.append(row | {"header": f"{1e6 * model.header(machine, ranks):.0f}"})
    return pd.DataFrame(rows)


def beside_model(machine: Machine, steps: dict[Step, float]) -> pd.DataFrame:
    """Milliseconds of measured steps, and what the model says of them."""
    rows = []
    for step, taken in steps.items():
        modelled = sum(model.parts(machine, step))
        row = {"W": step.ranks, "K": step.size, "gather": step.gather}
        row |= {"measured": f"{1e3 * taken:.3g}", "model": f"{1e3 * modelled:.3g}"}
        rows.append(row | {"model / measured": f"{modelled / taken:.2f}"})
    return pd.DataFrame(rows)


def text_of(section: str, path: Path) -> str:
    """Of "measured" ranks, by a record of processes, or "simulated", by a card's or model.py."""
    if section == "measured":
        machine, steps = of_processes(json.loads(path.read_text()))
        table = beside_model(machine, steps)
    else:
        machine = Machine() if path.suffix == ".py" else of_card(load(path))
        table = simulated(machine)
    constants = machine._asdict().items()
    texts = [f"{name} {value:.3g}" for name, value in constants if isinstance(value, float)]
    return f"{machine.name}: {', '.join(texts)}.\n\n{markdown(table)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    add = parser.add_argument
    text = "the table of the device of this record of make bench (default: eight H200 to a node)"
    add("--card", type=Path, metavar="RECORD", help=text)
    text = (
        "milliseconds of measured steps on this machine beside the model; if the file RECORD does "
    )
    text += "not exist, they are measured first, in about two minutes, and written to it"
    add("--measure", type=Path, metavar="RECORD", help=text)
    chosen = parser.parse_args()
    try:
        if chosen.measure and not chosen.measure.exists():
            write_whole(chosen.measure, measure())
        section = "measured" if chosen.measure else "simulated"
        print(text_of(section, chosen.measure or chosen.card or Path(model.__file__)))
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
