"""Puts a record's tables and pictures into README.md: ``python -m benchmarks.report.readme FILE``.

They take the place of those of the same kind of memory and of device: a GPU, or a CPU with the same
kernels.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases.sizes import Case, MomentumCase
from benchmarks.report import pictures, tables
from benchmarks.report.record import ROOT, Record, load, place

README = ROOT / "README.md"
PICTURES = ROOT / "docs" / "pictures"
BEGIN, END = "<!-- benchmark of the {memory}: {path} -->\n", "<!-- end of benchmark -->\n"
SHOWN = re.compile(
    BEGIN.format(memory="(?P<memory>.+?)", path=r"(?P<path>\S+)") + ".*?" + END, re.DOTALL
)


def section(memory: str, path: Path) -> str:
    """What stands in the README for one kind of memory, markers included."""
    record = load(path)
    parts = [tables.source_text(record), tables.markdown(tables.cases_table(record, memory))]
    if memory == Case.section:
        parts += _further(record)
    return BEGIN.format(memory=memory, path=place(path)) + "\n".join(parts) + END


def _further(record: Record) -> Iterator[str]:
    """What is not of one memory: pictures, growth, the host's time."""
    figures = {row["figure"] for row in record["rows"]}
    yield tables.ceilings_text(record)
    for name in pictures.available(record):
        yield f"![{pictures.TITLES[name]}](docs/pictures/{kind_of(record)}-{name}.png)\n"
    for figure, table in ((tables.GROWTH, tables.growth_table), (tables.HOST, tables.host_table)):
        if figure in figures:
            yield tables.explanation(table)
            yield tables.markdown(table(record))


def kind_of(record: Record) -> str:
    """Of the device, which the names of its pictures begin with."""
    kernels = sorted(set(record.get("kernels", {}).values()))
    return "gpu" if "gpu" in record else "-".join(["cpu", *kernels])


def shown(text: str) -> Iterator[tuple[re.Match[str], str, Path]]:
    """What a README's text shows: where, of which memory, of which record."""
    for match in SHOWN.finditer(text):
        yield match, match["memory"], ROOT / match["path"]


def updated(text: str, path: Path, memory: str | None = None) -> str:
    """The README's text with the record at ``path`` in the place of those of its kind.

    Raises:
        ValueError: there are none, or the record is none or outside the repository.
    """
    record = load(path)
    memories = [memory] if memory else {row["section"] for row in record["rows"]}
    replaced = text
    for match, of_memory, other in reversed(list(shown(text))):
        if of_memory in memories and kind_of(load(other)) == kind_of(record):
            replaced = (
                replaced[: match.start()] + section(of_memory, path) + replaced[match.end() :]
            )
    if replaced == text and place(path) not in text:
        marks = BEGIN.format(memory=Case.section, path=place(path)) + END
        raise ValueError(f"it has no place for this kind of device and memory, such as\n{marks}")
    return replaced


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.readme",
        description="Puts a record's tables and pictures into README.md.",
    )
    parser.add_argument("record", type=Path, help="a JSON file that benchmarks.report wrote")
    parser.add_argument(
        "--memory",
        choices=(Case.section, MomentumCase.section),
        help="put in the tables of this one alone (default: of all that the record has)",
    )
    chosen = parser.parse_args()
    path = chosen.record.resolve()
    try:
        README.write_text(updated(README.read_text(), path, chosen.memory))
        if chosen.memory != MomentumCase.section:
            record = load(path)
            pictures.draw_all(record, PICTURES, kind_of(record))
    except (OSError, ValueError) as error:
        sys.exit(f"README.md stays as it is: {error}")


if __name__ == "__main__":
    main()
