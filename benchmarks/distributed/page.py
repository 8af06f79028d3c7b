"""The tables of docs/scaling.md: simulated ones, and a record's."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.distributed import card
from benchmarks.distributed.measure import GIVING, median_of, step_of
from benchmarks.distributed.model import GATHERS, H200, Machine, Step, header, parts, seconds
from benchmarks.figures import three_digits
from benchmarks.paths import ROOT, place
from benchmarks.record import load, read

PAGE = ROOT / "docs" / "scaling.md"
SECTION = "<!-- {name}: {source} -->\n{table}<!-- end of {name} -->\n"

#: What the sections' text says of them on the page.
CAPTIONS = {
    "constants": "Constants; and with a record its steps, from embeddings on, beside the model's",
    "links": "NCCL's ways round a ring, of which a collective takes the fastest",
    "simulated": "A step, in brackets what of it is messages; the header beside it; bytes through "
    "a rank; its memory",
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
    ("agree", 1e6, "t_agree, µs"),
    ("round", 1e6, "t_round, µs"),
    ("each", 1e6, "t_each, µs"),
    ("per_node", 1, "ranks in a node"),
    ("capacity", 1e-9, "rows of a rank, at most GB"),
)
#: Names of :data:`benchmarks.distributed.model.NCCL`'s.
PROTOCOLS = ("LL", "LL128", "Simple")
#: A link's constants.
LINK_UNITS = (
    ("start", 1e6, "t₀, µs"),
    ("latency", 1e6, "α in one node, µs"),
    ("among_nodes", 1e6, "α of several, µs"),
    ("network_latency", 1e6, "α', µs"),
    ("bandwidth", 1e-9, "β, GB/s"),
    ("network_bandwidth", 1e-9, "β', GB/s"),
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


def links(machine: Machine = H200) -> str:
    """The ways in which a collective's messages may travel."""
    lines = [
        "| assumed | " + " | ".join(unit for _, _, unit in LINK_UNITS) + " |",
        "|---|" + "--:|" * len(LINK_UNITS),
    ]
    for name, link in zip(PROTOCOLS, machine.links, strict=True):
        values = (f"{scale * getattr(link, field):.3g}" for field, scale, _ in LINK_UNITS)
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def simulated(machine: Machine = H200) -> str:
    """Microseconds of a step but for the header, those of messages in brackets; the header's; and
    the bytes of a rank."""
    lines = [
        "| K | B | W | " + " | ".join(f"{gather}, µs" for gather in GATHERS) + " | header, µs | "
        "bytes through a rank, keys / shard | a rank's memory, keys / shard |",
        "|--:|--:|--:|" + "--:|" * 6,
    ]
    for size, batch in CASES:
        for ranks in RANKS:
            steps = [Step(gather, ranks, size, batch, element=ELEMENT) for gather in GATHERS]
            cells = [_cell(machine, step) for step in steps]
            cells.append(f"{1e6 * header(machine, ranks):.0f}")
            sent = " / ".join(_bytes(step.through) for step in steps[1:])
            held = " / ".join(_bytes(step.held) for step in steps[1:])
            lines.append(f"| {size} | {batch} | {ranks} | {' | '.join(cells)} | {sent} | {held} |")
    return "\n".join(lines) + "\n"


def _cell(machine: Machine, step: Step) -> str:
    if not step.possible:
        return "W·B > K"
    if step.held > machine.capacity:
        return "too large"
    computing, _, talking = (1e6 * part for part in parts(machine, step))
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
    machine = Machine.of_record(record["machine"])
    known = sorted(row["size"] for row in record["rows"] if row["ranks"] == 1)[:GIVING]
    (link,) = machine.links
    text = (
        f"t_step {1e6 * machine.step:.0f} µs, flops {machine.flops / 1e9:.0f} GFLOP/s, t_agree "
        f"{1e6 * machine.agree:.0f} µs, α and t_round {1e6 * link.latency:.0f} µs, β "
        f"{link.bandwidth / 1e9:.2f} GB/s.\n\n"
    )
    lines = [
        "| W | K | gather | measured, ms | model, ms | model / measured |",
        "|--:|--:|---|--:|--:|--:|",
    ]
    for row in record["rows"]:
        measured, wanted = median_of(row), seconds(machine, step_of(row))
        lines.append(
            f"| {row['ranks']} | {row['size']} | {row['gather']} | {three_digits(1e3 * measured)} "
            f"| {three_digits(1e3 * wanted)} | {wanted / measured:.2f}"
            f"{' (gave t_step, flops)' if row['ranks'] == 1 and row['size'] in known else ''} |"
        )
    return text + "\n".join(lines) + "\n"


def headers(record: dict[str, Any]) -> str:
    """The header's time beside that of gloo's ring."""
    lines = ["| W | gloo's ring, ms | header, ms |", "|--:|--:|--:|"]
    for row in record["headers"]:
        ring, header = (three_digits(1e3 * median_of(row[name])) for name in ("ring", "header"))
        lines.append(f"| {row['ranks']} | {ring} | {header} |")
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
        "links": links(machine),
        "simulated": simulated(machine),
        "crossings": crossings(machine),
    }


def sections(ranks: Path | None, device: Path | None) -> dict[str, str]:
    """The marked sections as they should be, by name; those of ``ranks``, a record of steps on
    several, only with one."""
    source = place(device) if device else "benchmarks/distributed/model.py"
    found = {name: (source, table) for name, table in tables(device).items()}
    if ranks is not None:
        record = read(ranks)
        found["measured"] = (place(ranks), checked(record))
        found["headers"] = (place(ranks), headers(record))
    return {
        name: SECTION.format(name=name, source=source, table=table)
        for name, (source, table) in found.items()
    }


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
        if _of_ranks(read(path)):
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
