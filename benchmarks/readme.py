"""Puts a record's table into the README: ``python -m benchmarks.readme RECORD.json``.

The table takes the place of the one that shows the same kind of device, a CPU or a GPU, and the
same kinds of memory.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import AnyCase, MomentumCase, from_fields
from benchmarks.figures import CPU_UNITS, CUDA_UNITS, MISSING, Units, best_sdpa, three_digits
from benchmarks.paths import ROOT
from benchmarks.peers import Compiled, Fused, PublishedEager
from benchmarks.sdpa import CpuFlash

README = ROOT / "README.md"
BEGIN, END = "<!-- benchmark: {path} -->\n", "<!-- end of benchmark -->\n"
SECTION = re.compile(BEGIN.format(path=r"(\S+)") + ".*?" + END, re.DOTALL)
CPU_HEAD = (
    "| case | published eager, ms | SDPA, ms | rrd_kernels, ms | × eager | × SDPA "
    "| of torch.mm | extra MiB, eager → ours |\n|---|--:|--:|--:|--:|--:|--:|--:|\n"
)
CUDA_HEAD = (
    "| case | published eager, µs | torch.compile, µs | best SDPA, µs | rrd_kernels, µs "
    "| × eager | × compile | × SDPA | in a graph, µs: best SDPA → ours | of torch.mm "
    "| extra MiB, eager → ours | gradient's error, eager → ours |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)
MOMENTUM_HEAD = (
    "| {section} | published, {time} | rrd_kernels, {time} | × published "
    "| extra MiB, published → ours | gradient's error, published → ours |\n"
    "|---|--:|--:|--:|--:|--:|\n"
)

#: As in a record, by implementation; without "seconds" where there are no figures.
Rows = Mapping[str, dict[str, Any]]


def load(path: Path) -> dict[str, Any]:
    """A record, or the one inside what ``make gpu-check`` wrote."""
    record = json.loads(path.read_text())
    return record.get("benchmark", record)


def table(record: dict[str, Any]) -> str:
    """The record as Markdown tables, one for each kind of memory, one line a case."""
    sections: dict[str, dict[AnyCase, dict[str, dict[str, Any]]]] = {}
    for row in record["rows"]:
        case = from_fields(row["case"])
        cases = sections.setdefault(case.section, {})
        cases.setdefault(case, {})[row["implementation"]] = row
    on_gpu = "gpu" in record
    tables = []
    for section, cases in sections.items():
        if section == MomentumCase.section:
            units = CUDA_UNITS if on_gpu else CPU_UNITS
            head = MOMENTUM_HEAD.format(section=section, time=units.time)
            lines = [_line(case, _momentum_cells(rows, units)) for case, rows in cases.items()]
        else:
            head, cells = (CUDA_HEAD, _cuda_cells) if on_gpu else (CPU_HEAD, _cpu_cells)
            looks = [look["mm_gflops"] for look in record["machine"].values() if look]
            lines = [
                _line(case, cells(rows, max(look[case.format] for look in looks)))
                for case, rows in cases.items()
            ]
        tables.append(head + "".join(lines))
    return "\n".join(tables)


def _line(case: AnyCase, cells: Sequence[str]) -> str:
    return "| " + " | ".join([case.name, *cells]) + " |\n"


def _cpu_cells(rows: Rows, ceiling: float) -> list[str]:
    eager, sdpa, ours = (rows[kind.name] for kind in (PublishedEager, CpuFlash, Fused))
    return [
        *(_time(row, CPU_UNITS) for row in (eager, sdpa, ours)),
        *(_speedup(ours, peer) for peer in (eager, sdpa)),
        f"{ours['gflops'] / ceiling:.0%}",
        _extra_memory(eager, ours),
    ]


def _cuda_cells(rows: Rows, ceiling: float) -> list[str]:
    eager, compiled, ours = (rows[kind.name] for kind in (PublishedEager, Compiled, Fused))
    best = best_sdpa({name: row["gflops"] for name, row in rows.items() if "gflops" in row})
    sdpa = rows[best] if best else {}
    kernel = f" ({best.removeprefix('SDPA ')})" if best else ""
    return [
        *(_time(row, CUDA_UNITS) for row in (eager, compiled)),
        _time(sdpa, CUDA_UNITS) + kernel,
        _time(ours, CUDA_UNITS),
        *(_speedup(ours, peer) for peer in (eager, compiled, sdpa)),
        " → ".join(_time(row.get("replay") or {}, CUDA_UNITS) for row in (sdpa, ours)),
        f"{ours['gflops'] / ceiling:.0%}",
        _extra_memory(eager, ours),
        _gradient_error(eager, ours),
    ]


def _momentum_cells(rows: Rows, units: Units) -> list[str]:
    published, ours = rows.values()
    graph = f" ({_time(ours['replay'], units)} in a graph)" if ours.get("replay") else ""
    return [
        _time(published, units),
        _time(ours, units) + graph,
        _speedup(ours, published),
        _extra_memory(published, ours),
        _gradient_error(published, ours),
    ]


def _time(row: Mapping[str, Any], units: Units) -> str:
    if "seconds" not in row:
        return row.get("outcome", MISSING)
    return three_digits(units.per_second * row["seconds"]["median"])


def _speedup(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    if "seconds" not in peer or "seconds" not in ours:
        return MISSING
    return f"{ours['speedup'][peer['implementation']]:.1f}"


def _extra_memory(eager: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    return " → ".join(
        f"{row['extra_bytes'] / 2**20:.1f}" if "extra_bytes" in row else MISSING
        for row in (eager, ours)
    )


def _gradient_error(eager: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Relative to float64, in the Frobenius norm."""
    return " → ".join(
        f"{row['errors']['gradient']:.1e}" if row.get("errors") else MISSING
        for row in (eager, ours)
    )


def kind(record: Mapping[str, Any]) -> tuple[bool, frozenset[str]]:
    """Whether a record is of a GPU, and of which memories."""
    sections = frozenset(from_fields(row["case"]).section for row in record["rows"])
    return "gpu" in record, sections


def section(path: Path) -> str:
    """What stands in the README for the record at ``path``, markers included."""
    return BEGIN.format(path=path.relative_to(ROOT).as_posix()) + table(load(path)) + END


def shown_records(text: str) -> list[Path]:
    """The records that the README's text says it shows."""
    return [ROOT / match[1] for match in SECTION.finditer(text)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("record", type=Path, help="a JSON file that python -m benchmarks wrote")
    path = parser.parse_args().record.resolve()
    text = README.read_text()
    shown = kind(load(path))
    for match in SECTION.finditer(text):
        if kind(load(ROOT / match[1])) == shown:
            README.write_text(text[: match.start()] + section(path) + text[match.end() :])
            return
    sys.exit(
        "README.md has no table of this kind of device and memory; where it is to stand, write\n"
        + BEGIN.format(path=path.relative_to(ROOT).as_posix())
        + END
    )


if __name__ == "__main__":
    main()
