"""The model's table of steps on many ranks, or measured steps beside the model."""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.distributed.measure import measure, of_processes
from benchmarks.distributed.model import GATHERS, Machine, Step, header, parts
from benchmarks.measuring import host_time
from benchmarks.measuring.run import STEP
from benchmarks.report.record import ROOT, load, write_whole

PAGE = ROOT / "docs" / "scaling.md"
RANKS = (8, 64, 256, 1024)
#: K, and B of each rank.
SIZES = ((16384, 16), (65536, 64), (2**20, 64), (10**7, 64), (10**8, 64), (2**20, 16))


def of_card(record: Mapping[str, Any]) -> Machine:
    """The device of a record of ``make bench``, in place of an H200."""
    ours = [row for row in record["rows"] if row["implementation"] == "rrd_kernels"]
    rates = [
        row["operations"] / row["median"]
        for row in ours
        if row["figure"] == STEP and row["format"] == "bfloat16" and "median" in row
    ]
    layers = [
        row["median"]
        for row in ours
        # Older records have kernels among them, at another size.
        if (row["figure"], row["case"]) == (host_time.HOST, host_time.CASE.name)
    ]
    if not rates or not layers:
        raise ValueError("a card's constants take the bfloat16 cases and the host's time")
    name = record["gpu"]["name"] if "gpu" in record else record["cpu"]
    return Machine(
        name=f"{name}, bfloat16 (step, flops, read measured, else assumed)",
        step=sum(layers),
        flops=max(rates),
        read=1e9 * max(at["copy_gbytes_per_second"] for at in record["machine"].values() if at),
    )


def beside_model(machine: Machine, steps: Sequence[tuple[Step, float]]) -> str:
    """Milliseconds of measured steps, and what the model says of them."""
    rows = []
    for step, measured in steps:
        model = sum(parts(machine, step))
        times = (f"{1e3 * measured:.3g}", f"{1e3 * model:.3g}", f"{model / measured:.2f}")
        rows.append((step.ranks, step.size, step.gather, *times))
    return table(("W", "K", "gather", "measured", "model", "model / measured"), rows)


def simulated(machine: Machine) -> str:
    """Microseconds of bfloat16 steps, in brackets those of messages; and of the header."""
    rows = []
    for (size, batch), ranks in itertools.product(SIZES, RANKS):
        cells = []
        for gather in GATHERS:
            computing, _, talking = parts(machine, Step(gather, ranks, size, batch, element=2))
            cells.append(f"{1e6 * (computing + talking):.0f} ({1e6 * talking:.0f})")
        rows.append((size, batch, ranks, *cells, f"{1e6 * header(machine, ranks):.0f}"))
    return table(("K", "B", "W", *GATHERS, "header"), rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [titles, ["--:"] * len(titles), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    add = parser.add_argument
    add("--card", type=Path, metavar="RECORD", help="the table of a device, by make bench's record")
    add("--measure", type=Path, metavar="RECORD", help="measures in two minutes, if it is new")
    add("--page", action="store_true", help="puts it into docs/scaling.md in place of printing it")
    options = parser.parse_args()
    try:
        section = "measured" if options.measure else "simulated"
        source = options.measure or options.card or Path(__file__).with_name("model.py")
        if options.page:  # which names it
            source = source.resolve().relative_to(ROOT)
        if options.measure:
            if not options.measure.exists():
                write_whole(options.measure, measure())
            machine, steps = of_processes(json.loads(options.measure.read_text()))
            shown = beside_model(machine, steps)
        else:
            machine = of_card(load(options.card)) if options.card else Machine()
            shown = simulated(machine)
        constants = machine._asdict().items()
        texts = [f"{name} {value:.3g}" for name, value in constants if isinstance(value, float)]
        text = f"{machine.name}: {', '.join(texts)}.\n\n{shown}"
        if not options.page:
            return print(text)
        before, _, rest = PAGE.read_text().partition(f"<!-- {section}: ")
        _, end, after = rest.partition(f"<!-- end of {section} -->")
        PAGE.write_text(f"{before}<!-- {section}: {source} -->\n{text}{end}{after}")
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
