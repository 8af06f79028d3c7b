"""The tables of docs/scaling.md: simulated ones, and a record's."""

import json
import math
import re
from pathlib import Path
from typing import Any

from benchmarks.distributed.measure import median_of, step_of
from benchmarks.distributed.model import GATHERS, H200, Machine, Step, parts, seconds
from benchmarks.figures import three_digits
from benchmarks.paths import ROOT

PAGE = ROOT / "docs" / "scaling.md"
SECTION = "<!-- {name}: {source} -->\n{table}<!-- end of {name} -->\n"

RANKS = (1, 8, 64, 256, 1024)
#: K, B of each rank, and bytes of a stored number.
CASES = ((16384, 64), (65536, 64), (2**20, 64), (10**7, 64), (10**8, 64), (2**20, 16))
#: Bytes of a bfloat16.
ELEMENT = 2


def simulated(machine: Machine = H200) -> str:
    """Microseconds of a step, those of communication in brackets; and the bytes of a rank."""
    lines = [
        "| K | B | W | " + " | ".join(f"{gather}, µs" for gather in GATHERS) + " | "
        "bytes on the wire, keys / shard | a rank's memory, keys / shard |",
        "|--:|--:|--:|" + "--:|" * 5,
    ]
    for size, batch in CASES:
        for ranks in RANKS:
            steps = [Step(gather, ranks, size, batch, element=ELEMENT) for gather in GATHERS]
            cells = [_cell(machine, step) for step in steps]
            sent = " / ".join(_bytes(step.sent) for step in steps[1:])
            held = " / ".join(_bytes(step.held) for step in steps[1:])
            lines.append(f"| {size} | {batch} | {ranks} | {' | '.join(cells)} | {sent} | {held} |")
    return "\n".join(lines) + "\n"


def _cell(machine: Machine, step: Step) -> str:
    if not step.possible:
        return "W·B > K"
    if step.held > machine.capacity:
        return "too large"
    computing, talking = (1e6 * part for part in parts(machine, step))
    return f"{computing + talking:.0f}" + (f" ({talking:.0f})" if talking else "")


def _bytes(count: float) -> str:
    if count == 0:
        return "0"
    power = min(int(math.log(count, 1024)), 4)
    return f"{three_digits(count / 1024**power)} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def crossing(machine: Machine, ranks: int, batch: int) -> int | None:
    """The smallest K, a power of two, from which on a shard's step is the faster one."""
    for power in range(10, 34):
        size = 2**power
        steps = [Step(gather, ranks, size, batch, element=ELEMENT) for gather in GATHERS[1:]]
        if all(step.possible for step in steps):
            keys, shard = (seconds(machine, step) for step in steps)
            if shard < keys:
                return size
    return None


def crossings(machine: Machine = H200) -> str:
    """From which K on ``"shard"`` is faster than ``"keys"``."""
    batches = (4, 16, 64, 256)
    lines = ["| W | " + " | ".join(f"B = {batch}" for batch in batches) + " |"]
    lines.append("|--:|" + "--:|" * len(batches))
    for ranks in RANKS[1:]:
        found = [crossing(machine, ranks, batch) for batch in batches]
        cells = ["never" if size is None else f"2^{size.bit_length() - 1}" for size in found]
        lines.append(f"| {ranks} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def checked(record: dict[str, Any]) -> str:
    """What a record has measured, and what the model says of it."""
    machine = Machine(**record["machine"])
    lines = [
        "| W | K | gather | measured, ms | model, ms | model / measured |",
        "|--:|--:|---|--:|--:|--:|",
    ]
    for row in record["rows"]:
        measured, wanted = median_of(row), seconds(machine, step_of(row))
        lines.append(
            f"| {row['ranks']} | {row['size']} | {row['gather']} | {three_digits(1e3 * measured)} "
            f"| {three_digits(1e3 * wanted)} | {wanted / measured:.2f} |"
        )
    return "\n".join(lines) + "\n"


def sections(record: Path | None) -> dict[str, str]:
    """The marked sections as they should be, by name; that of a record only with one."""
    model = "benchmarks/distributed/model.py"
    tables = {"simulated": (model, simulated()), "crossings": (model, crossings())}
    if record is not None:
        source = record.relative_to(ROOT).as_posix()
        tables["measured"] = (source, checked(json.loads(record.read_text())))
    return {
        name: SECTION.format(name=name, source=source, table=table)
        for name, (source, table) in tables.items()
    }


def record_of(page: str) -> Path | None:
    """The record that the page shows, once it shows one."""
    found = re.search(r"<!-- measured: (\S+\.json) -->", page)
    return ROOT / found.group(1) if found else None


def write(record: Path | None) -> None:
    """Puts the simulated tables, and a record's, into the page.

    Raises:
        ValueError: the page has no such section.
    """
    page = PAGE.read_text()
    for name, section in sections(record).items():
        begin = re.search(rf"<!-- {name}: \S+ -->\n", page)
        end = f"<!-- end of {name} -->\n"
        if begin is None or end not in page:
            raise ValueError(f"{PAGE} has no section {name!r}")
        page = page[: begin.start()] + section + page[page.index(end) + len(end) :]
    PAGE.write_text(page)
