"""The tables of docs/scaling.md: simulated ones, and a record's."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.distributed import card
from benchmarks.distributed.measure import median_of, step_of
from benchmarks.distributed.model import GATHERS, H200, Machine, Step, parts, seconds
from benchmarks.figures import three_digits
from benchmarks.paths import ROOT
from benchmarks.record import load

PAGE = ROOT / "docs" / "scaling.md"
SECTION = "<!-- {name}: {source} -->\n{table}<!-- end of {name} -->\n"

#: What the sections' text says of them on the page.
CAPTIONS = {
    "constants": "Constants; and with a record its steps, from embeddings on, beside the model's",
    "simulated": "A step, with that of its messages in brackets; all messages; a rank's memory",
    "crossings": 'The smallest K from which on "shard" is faster than "keys"',
}
RANKS = (1, 8, 64, 256, 1024)
#: K, B of each rank, and bytes of a stored number.
CASES = ((16384, 64), (65536, 64), (2**20, 64), (10**7, 64), (10**8, 64), (2**20, 16))
#: A machine's constants: their factor and their names on the page.
UNITS = (
    ("step", 1e6, "t_step, µs"),
    ("flops", 1e-12, "flops, TFLOP/s"),
    ("read", 1e-12, "read, TB/s"),
    ("latency", 1e6, "α, µs"),
    ("bandwidth", 1e-9, "β, GB/s"),
    ("network_latency", 1e6, "α', µs"),
    ("network_bandwidth", 1e-9, "β', GB/s"),
    ("per_node", 1, "ranks in a node"),
    ("capacity", 1e-9, "rows of a rank, at most GB"),
)
#: Bytes of a bfloat16.
ELEMENT = 2


def machine_of(record: Path | None) -> Machine:
    """That of a device's record; without one the assumed."""
    return H200 if record is None else card.constants(load(record))


def constants(record: Path | None = None) -> str:
    """The model's constants, and with a device's record what they make of its steps."""
    machine = machine_of(record)
    lines = [f"| {machine.name} | | |", "|---|--:|---|"]
    for name, scale, unit in UNITS:
        of_device = record is not None and name in card.MEASURED
        value = scale * getattr(machine, name)
        lines.append(f"| {unit} | {value:.3g} | {'measured' if of_device else 'assumed'} |")
    text = "\n".join(lines) + "\n"
    if record is None:
        return text
    lines = ["| B | K | D | measured, µs | model, µs | model / measured |", "|--:|" + "--:|" * 5]
    for step, measured, model, gave_flops in card.steps(load(record)):
        fitted = " (gave flops)" if gave_flops else ""
        lines.append(
            f"| {step.batch} | {step.size} | {step.dim} | {three_digits(1e6 * measured)} "
            f"| {three_digits(1e6 * model)} | {model / measured:.2f}{fitted} |"
        )
    return text + "\n" + "\n".join(lines) + "\n"


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


def tables(device: Path | None = None) -> dict[str, str]:
    """What the model says, by the name of its section.

    Args:
        device: a record of one device, which gives its constants in place of the assumed.

    Raises:
        OSError, ValueError: it cannot be read, or has not all of them.
    """
    machine = machine_of(device)
    return {
        "constants": constants(device),
        "simulated": simulated(machine),
        "crossings": crossings(machine),
    }


def sections(ranks: Path | None, device: Path | None) -> dict[str, str]:
    """The marked sections as they should be, by name; that of ``ranks``, a record of steps on
    several, only with one."""
    source = _name(device) if device else "benchmarks/distributed/model.py"
    found = {name: (source, table) for name, table in tables(device).items()}
    if ranks is not None:
        found["measured"] = (_name(ranks), checked(json.loads(ranks.read_text())))
    return {
        name: SECTION.format(name=name, source=source, table=table)
        for name, (source, table) in found.items()
    }


def _name(record: Path) -> str:
    return record.relative_to(ROOT).as_posix()


def records_of(page: str) -> tuple[Path | None, Path | None]:
    """The records that the page shows, of several ranks and of one device."""
    found = [
        re.search(rf"<!-- {name}: (\S+\.json) -->", page) for name in ("measured", "constants")
    ]
    ranks, device = (ROOT / match.group(1) if match else None for match in found)
    return ranks, device


def _of_ranks(record: Any) -> bool:
    """Whether several ranks were measured; a device's record may be inside another."""
    rows = record.get("rows", []) if isinstance(record, dict) else []
    return any("gather" in row for row in rows)


def write(records: Sequence[Path]) -> None:
    """Puts the tables into the page, with records of either kind in place of those that it shows.

    Raises:
        OSError, ValueError: a record cannot be read, or the page lacks a section.
    """
    page = PAGE.read_text()
    ranks, device = records_of(page)
    for path in records:
        if _of_ranks(json.loads(path.read_text())):
            ranks = path
        else:
            device = path
    for name, section in sections(ranks, device).items():
        begin = re.search(rf"<!-- {name}: \S+ -->\n", page)
        end = f"<!-- end of {name} -->\n"
        if begin is None or end not in page:
            raise ValueError(f"{PAGE} has no section {name!r}")
        page = page[: begin.start()] + section + page[page.index(end) + len(end) :]
    PAGE.write_text(page)
