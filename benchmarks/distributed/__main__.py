"""The model's table of steps on many ranks, or measured steps beside the model."""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.distributed.measure import measure, of_processes
from benchmarks.distributed.model import GATHERS, Machine, Step, header, parts
from benchmarks.implementations.fifo import Fused
from benchmarks.measuring import breakdown
from benchmarks.measuring.hardware import ROOT
from benchmarks.measuring.run import STEP
from benchmarks.report.record import Record, load, write_whole
from benchmarks.report.tables import frame, markdown, rates

PAGE = ROOT / "docs" / "scaling.md"
RANKS = (8, 64, 256, 1024)
#: K, and B of each rank.
SIZES = ((16384, 16), (65536, 64), (2**20, 64), (10**7, 64), (10**8, 64), (2**20, 16))


def of_card(record: Record) -> Machine:
    """The device of a record of ``make bench``, in place of an H200."""
    rows = frame(record)
    ours = rows[rows.implementation == Fused.name].dropna(subset="median")
    steps = ours[(ours.figure == STEP) & (ours.format == "bfloat16")]
    # Older records have kernels among the layers, at another size.
    layers = ours[(ours.figure == breakdown.HOST) & (ours.case == breakdown.CASE.name)]
    if steps.empty or layers.empty:
        raise ValueError("a card's constants take the bfloat16 cases and the host's time")
    name = record["gpu"]["name"] if "gpu" in record else record["cpu"]
    return Machine(
        name=f"{name}, bfloat16 (step, flops, read measured, else assumed)",
        step=layers["median"].sum(),
        flops=(steps.operations / steps["median"]).max(),
        read=rates(record)[1],
    )


def beside_model(machine: Machine, steps: Sequence[tuple[Step, float]]) -> pd.DataFrame:
    """Milliseconds of measured steps, and what the model says of them."""
    rows = []
    for step, measured in steps:
        model = sum(parts(machine, step))
        times = (f"{1e3 * measured:.3g}", f"{1e3 * model:.3g}", f"{model / measured:.2f}")
        rows.append((step.ranks, step.size, step.gather, *times))
    return pd.DataFrame(rows, columns=["W", "K", "gather", "measured", "model", "model / measured"])


def simulated(machine: Machine) -> pd.DataFrame:
    """Microseconds of bfloat16 steps, in brackets those of messages; and of the header."""
    rows = []
    for (size, batch), ranks in itertools.product(SIZES, RANKS):
        cells = []
        for gather in GATHERS:
            computing, _, talking = parts(machine, Step(gather, ranks, size, batch, element=2))
            cells.append(f"{1e6 * (computing + talking):.0f} ({1e6 * talking:.0f})")
        rows.append((size, batch, ranks, *cells, f"{1e6 * header(machine, ranks):.0f}"))
    return pd.DataFrame(rows, columns=["K", "B", "W", *GATHERS, "header"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    add = parser.add_argument
    add("--card", type=Path, metavar="RECORD", help="the table of a device, by make bench's record")
    add("--measure", type=Path, metavar="RECORD", help="measures in two minutes, if it is new")
    add("--page", action="store_true", help="puts it into docs/scaling.md in place of printing it")
    options = parser.parse_args()
    section = "measured" if options.measure else "simulated"
    source = options.measure or options.card or Path(__file__).with_name("model.py")
    try:
        if options.page:  # which names it
            source = source.resolve().relative_to(ROOT)
        if options.measure:
            if not options.measure.exists():
                write_whole(options.measure, measure())
            machine, steps = of_processes(json.loads(options.measure.read_text()))
            table = beside_model(machine, steps)
        else:
            machine = of_card(load(options.card)) if options.card else Machine()
            table = simulated(machine)
        constants = machine._asdict().items()
        texts = [f"{name} {value:.3g}" for name, value in constants if isinstance(value, float)]
        text = f"{machine.name}: {', '.join(texts)}.\n\n{markdown(table)}"
        if not options.page:
            return print(text)
        before, _, rest = PAGE.read_text().partition(f"<!-- {section}: ")
        _, end, after = rest.partition(f"<!-- end of {section} -->")
        PAGE.write_text(f"{before}<!-- {section}: {source} -->\n{text}{end}{after}")
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
