"""Puts a record's table into the README: ``python -m benchmarks.readme RECORD.json``."""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT
from benchmarks.table import three_digits

README = ROOT / "README.md"
BEGIN, END = "<!-- benchmark: {path} -->\n", "<!-- end of benchmark -->\n"
HEAD = (
    "| case | published eager, ms | SDPA, ms | rrd_kernels, ms | × eager | × SDPA "
    "| of torch.mm | extra MiB, eager → ours |\n|---|--:|--:|--:|--:|--:|--:|--:|\n"
)


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table, one line a case."""
    cases: dict[str, dict[str, Any]] = {}
    for row in record["rows"]:
        case = row["case"]
        name = f"{case['dtype_name']} {case['batch']}×{case['rows']}"
        cases.setdefault(name, {})[row["implementation"]] = row
    machine = record["machine"]
    lines = []
    for name, rows in cases.items():
        eager, sdpa, ours = (rows[key] for key in ("published eager", "SDPA", "rrd_kernels"))
        milliseconds = [three_digits(1e3 * row["seconds"]["median"]) for row in (eager, sdpa, ours)]
        dtype = ours["case"]["dtype_name"]
        ceiling = max(machine[when]["mm_gflops"][dtype] for when in ("before", "after"))
        speedup = ours["speedup"]
        memory = [f"{row['extra_bytes'] / 2**20:.1f}" for row in (eager, ours)]
        cells = [
            name,
            *milliseconds,
            f"{speedup['published eager']:.1f}",
            f"{speedup['SDPA']:.1f}",
            f"{ours['gflops'] / ceiling:.0%}",
            " → ".join(memory),
        ]
        lines.append("| " + " | ".join(cells) + " |\n")
    return HEAD + "".join(lines)


def section(path: Path) -> str:
    """What stands in the README for the record at ``path``, markers included."""
    record = json.loads(path.read_text())
    return BEGIN.format(path=path.relative_to(ROOT).as_posix()) + table(record) + END


def shown_record(text: str) -> Path:
    """The record that the README's text says it shows."""
    start, end = BEGIN.split("{path}")
    return ROOT / text.split(start, 1)[1].split(end, 1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("record", type=Path, help="a JSON file that python -m benchmarks wrote")
    path = parser.parse_args().record.resolve()
    text = README.read_text()
    begin = text.index(BEGIN.split("{path}")[0])
    end = text.index(END) + len(END)
    README.write_text(text[:begin] + section(path) + text[end:])


if __name__ == "__main__":
    main()
