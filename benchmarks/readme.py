"""Puts a record's tables and pictures into the README: ``python -m benchmarks.readme RECORD.json``.

They take the place of those of the same kind of memory and of device: a GPU, or a CPU with the same
kernels.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import markdown, part_tables, pictures, record
from benchmarks.cases import Case, MomentumCase
from benchmarks.paths import PICTURES, ROOT, place

README = ROOT / "README.md"
BEGIN, END = "<!-- benchmark of the {memory}: {path} -->\n", "<!-- end of benchmark -->\n"
SHOWN = re.compile(
    BEGIN.format(memory="(?P<memory>.+?)", path=r"(?P<path>\S+)") + ".*?" + END, re.DOTALL
)

HOST_TIME = """\
Where the microseconds of one training step of `RRDLoss` go, from features, its backward included.
Calls that each contain the one before are timed in turn; a line is the median of their differences.
"""


@dataclass(frozen=True)
class Section:
    """What stands in the README for one kind of memory, from the record at ``path``."""

    memory: str
    path: Path

    @property
    def text(self) -> str:
        """Markers included."""
        measured = record.load(self.path)
        begin = BEGIN.format(memory=self.memory, path=place(self.path))
        parts = [markdown.source_text(measured), markdown.cases_table(measured, self.memory)]
        if self.memory == Case.section:
            parts += _further(measured)
        return begin + "\n".join(parts) + END

    @property
    def kind(self) -> str:
        return kind_of(record.load(self.path))


def kind_of(measured: Mapping[str, Any]) -> str:
    """Of the device, which the names of its pictures begin with."""
    kernels = sorted(set(measured.get("kernels", {}).values()))
    return "gpu" if "gpu" in measured else "-".join(["cpu", *kernels])


def _further(measured: Mapping[str, Any]) -> Iterator[str]:
    """What is not of one memory: pictures, scaling, the host's time."""
    shown = {name: picture(measured, name) for name in pictures.available(measured)}
    folder = PICTURES.relative_to(ROOT).as_posix()
    yield markdown.ceilings_text(measured)
    for name, path in shown.items():
        yield f"![{pictures.TITLES[name]}]({folder}/{path.name})\n"
    if measured.get("scaling"):
        yield part_tables.SCALING
        yield part_tables.scaling_table(measured)
    if measured.get("host_time"):
        yield HOST_TIME
        yield part_tables.host_table(measured)


def picture(measured: Mapping[str, Any], name: str) -> Path:
    return PICTURES / pictures.file_name(kind_of(measured), name)


def shown(text: str) -> list[tuple[re.Match[str], Section]]:
    """What a README's text shows, and where."""
    return [
        (match, Section(match["memory"], ROOT / match["path"])) for match in SHOWN.finditer(text)
    ]


def updated(text: str, path: Path, memory: str | None = None) -> str:
    """The README's text with the record at ``path`` in the place of those of its kind.

    Raises:
        ValueError: there are none, or the record is none or outside the repository.
    """
    measured = record.load(path)
    memories = markdown.sections(measured)
    replaced = 0
    for match, section in reversed(shown(text)):
        wanted = memories if memory is None else [memory]
        if section.kind == kind_of(measured) and section.memory in wanted:
            new = Section(section.memory, path).text
            text = text[: match.start()] + new + text[match.end() :]
            replaced += 1
    if not replaced:
        marks = "".join(Section(memory, path).text for memory in memories)
        raise ValueError(f"it has no place for this kind of device and memory, such as\n{marks}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("record", type=Path, help="a JSON file that benchmarks.report wrote")
    parser.add_argument(
        "--memory",
        choices=(Case.section, MomentumCase.section),
        help="put in the tables of this one alone (default: of all that the record has)",
    )
    chosen = parser.parse_args()
    path = chosen.record.resolve()
    try:
        text = updated(README.read_text(), path, chosen.memory)
        measured = record.load(path)
        if Case.section in ([chosen.memory] if chosen.memory else markdown.sections(measured)):
            pictures.draw_all(measured, PICTURES, kind_of(measured))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"README.md stays as it is: {error}")
    README.write_text(text)


if __name__ == "__main__":
    main()
