"""Tables and pictures of a record: ``python -m benchmarks.report.documents RECORD.json``. Without a
record: those of README.md and docs/*.md, made again from the records that their marks name.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks.cases.sizes import Case
from benchmarks.distributed.__main__ import text_of
from benchmarks.measuring.hardware import ROOT
from benchmarks.measuring.run import HOST
from benchmarks.report import pictures, tables
from benchmarks.report.record import load

PICTURES = ROOT / "docs" / "pictures"
#: A mark, with what its table is of and the record's place, and what follows it up to the next.
MARKED = re.compile(r"(?s)(<!-- benchmark of the ([\w ]+): (\S+) -->\n).*?(?=<!-- end of bench)")

#: Tables that stand alone, with their source below.
SHORT: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "gain": tables.gain_table,
    "errors": tables.errors_table,
    "family": tables.family_table,
}


def pages() -> list[Path]:
    """The documents with marks."""
    documents = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    return [path for path in documents if MARKED.search(path.read_text())]


def show(path: Path) -> None:
    """Prints the tables of a record; they and the pictures go beside it."""
    record = load(path)
    text = tables.document(record)
    tables.print_markdown(text)
    for picture in pictures.draw_all(record, path.parent, path.stem):
        text += f"\n![{picture.stem}]({picture.name})\n"
    path.with_suffix(".md").write_text(text)
    print(f"tables written to {path.with_suffix('.md')}, pictures beside it")


def section(of: str, path: Path) -> str:
    """What stands between the marks of one kind."""
    if of in ("measured ranks", "simulated ranks"):
        return text_of(of.split()[0], path)
    record = load(path)
    rows = tables.frame(record)
    if of in SHORT:
        return tables.markdown(SHORT[of](rows)) + "\n" + tables.source_text(record)
    parts = [
        tables.source_text(record),
        tables.markdown(tables.cases_table(rows, of, between="<br>")),
    ]
    parts += tables.targets_text(rows, of, record)
    if of == Case.section:
        for figure, title in pictures.TITLES.items():
            if figure in rows.figure.unique():
                parts.append(f"![{title}](pictures/{path.stem}-{figure}.png)\n")
        host = tables.listing(rows[rows.figure == HOST]).filter(regex="part|median|p20")
        parts += ["Where the host's time goes in a step of `RRDLoss`:\n", tables.markdown(host)]
    return "\n".join(parts)


def with_tables(text: str) -> str:
    """A document's text with tables anew."""
    return MARKED.sub(lambda mark: mark[1] + section(mark[2], ROOT / mark[3]), text)


def make_anew() -> None:
    for page in pages():
        page.write_text(with_tables(page.read_text()))
        print(f"tables written to {page}")
        for _, of, place in MARKED.findall(page.read_text()):
            if of == Case.section:
                pictures.draw_all(load(ROOT / place), PICTURES, Path(place).stem)


def main() -> None:
    text = "Writes a record's tables and pictures beside it. Without a record: those of README.md "
    text += "and docs/*.md, from the records that their marks name."
    parser = argparse.ArgumentParser("python -m benchmarks.report.documents", description=text)
    text = "JSON record that make bench wrote"
    parser.add_argument("record", nargs="?", type=Path, metavar="RECORD.json", help=text)
    path = parser.parse_args().record
    try:
        show(path) if path else make_anew()
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
