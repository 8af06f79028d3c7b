"""The generated sections of docs/scaling.md."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.distributed.card import card_of
from benchmarks.distributed.measure import steps_of
from benchmarks.distributed.model import GATHERS, H200, Machine, Step, header, parts, seconds
from benchmarks.paths import ROOT
from benchmarks.record import load

PAGE = ROOT / "docs" / "scaling.md"
RANKS = (8, 64, 256, 1024)
#: K, and B of each rank.
SIZES = ((16384, 16), (65536, 64), (2**20, 64), (10**7, 64), (10**8, 64), (2**20, 16))


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """In Markdown, of rows that have the same titles."""
    lines = [rows[0], ["--:"] * len(rows[0]), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def constants(machine: Machine) -> str:
    """In a sentence, with the links' α and β between ranks of a node."""
    names = ("step", "agree", "round", "each")
    texts = [f"t_{name} {1e6 * getattr(machine, name):.3g} µs" for name in names]
    texts.append(f"flops {1e-12 * machine.flops:.3g} TFLOP/s")
    if machine.read < math.inf:
        texts.append(f"read {1e-12 * machine.read:.3g} TB/s")
    for link in machine.links:
        texts.append(f"α {1e6 * link.latency:.3g} µs with β {1e-9 * link.bandwidth:.3g} GB/s")
    return f"{machine.name}: {', '.join(texts)}.\n"


def beside_model(machine: Machine, steps: Iterable[tuple[Step, float]]) -> str:
    """Measured steps, and what the model says of them."""
    rows: list[dict[str, object]] = []
    for step, measured in steps:
        model = seconds(machine, step)
        row = {"W": step.ranks, "B": step.batch, "K": step.size, "gather": step.gather}
        times = {"measured, ms": f"{1e3 * measured:.3g}", "model, ms": f"{1e3 * model:.3g}"}
        rows.append(row | times | {"model / measured": f"{model / measured:.2f}"})
    return table(rows)


def simulated(machine: Machine) -> str:
    """Bfloat16 steps but for the header, and the header."""
    rows = []
    for (size, batch), ranks in itertools.product(SIZES, RANKS):
        cells = {}
        for gather in GATHERS:
            computing, _, talking = parts(machine, Step(gather, ranks, size, batch, element=2))
            messages = f" ({1e6 * talking:.0f})" if talking else ""
            cells[f"{gather}, µs (messages)"] = f"{1e6 * (computing + talking):.0f}{messages}"
        cells["header, µs"] = f"{1e6 * header(machine, ranks):.0f}"
        rows.append({"K": size, "B": batch, "W": ranks, **cells})
    return table(rows)


def of_model(card: Path | None = None) -> dict[str, str]:
    """Sections by name: of the assumed constants, or those that a record of ``make bench`` has.

    Raises:
        OSError, ValueError: it cannot be read, or lacks what the model needs.
    """
    machine, measured = H200, ""
    if card:
        machine, functional, steps = card_of(load(card))
        measured = "\n" + beside_model(machine._replace(step=functional), steps)
    return {"constants": constants(machine) + measured, "simulated": simulated(machine)}


def of_processes(record: Mapping[str, Any]) -> dict[str, str]:
    """The section of a record of ``--measure``."""
    machine = Machine.of_record(record["machine"])
    return {"measured": f"{constants(machine)}\n{beside_model(machine, steps_of(record))}"}


def write(paths: Sequence[Path]) -> None:
    """Puts the sections of records of either kind, or without any of the assumed constants, into
    the page.

    Raises:
        OSError, ValueError: as :func:`of_model`, or a record is outside the repository.
    """
    page = PAGE.read_text()
    for path in paths or (None,):
        source = path.resolve().relative_to(ROOT) if path else "benchmarks/distributed/model.py"
        record = json.loads(path.read_text()) if path else {}
        of_ranks = "links" in record.get("machine", ())
        for name, text in (of_processes(record) if of_ranks else of_model(path)).items():
            before, _, rest = page.partition(f"<!-- {name}: ")
            _, end, after = rest.partition(f"<!-- end of {name} -->")
            page = f"{before}<!-- {name}: {source} -->\n{text}{end}{after}"
    PAGE.write_text(page)
