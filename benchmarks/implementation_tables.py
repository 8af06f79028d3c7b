"""Every implementation of a record's cases, and the parts of its step, as Markdown tables."""

from collections.abc import Mapping
from typing import Any

from benchmarks.cases import AnyCase
from benchmarks.ceilings import Ceilings
from benchmarks.figures import (
    CUDA_UNITS,
    MISSING,
    Line,
    Units,
    memory_text,
    percent,
    share_text,
    spread_text,
    table,
)
from benchmarks.step_parts import BACKWARD, ENQUEUE, FORWARD, UPDATE

#: Of one kind of memory: as in a record, by case and implementation.
CaseRows = Mapping[AnyCase, Mapping[str, Mapping[str, Any]]]


def steps_table(cases: CaseRows, units: Units, ceilings: Ceilings) -> str:
    """A line for each implementation of each case."""
    return table(
        [
            _step_line(case, row, units, ceilings)
            for case, rows in cases.items()
            for row in rows.values()
        ]
    )


def _step_line(
    case: AnyCase, row: Mapping[str, Any], units: Units, ceilings: Ceilings
) -> dict[str, str]:
    bound = ceilings.bound(case)

    def timed(timing: Mapping[str, Any]) -> str:
        seconds = timing["seconds"]
        return spread_text(seconds, units) + share_text(bound, seconds["median"])

    found = "seconds" in row
    rate, errors = row.get("gflops"), row.get("errors")
    return {
        case.section: case.name,
        "implementation": row["implementation"],
        f"{units.time} [p20–p80]": timed(row) if found else row["outcome"],
        "in a graph": timed(row["replay"]) if row.get("replay") else MISSING,
        units.rate: MISSING if rate is None else f"{1e9 * rate / units.operations:.0f}",
        "rounds": str(row["rounds"]) if found else MISSING,
        "extra MiB": memory_text(row),
        "gradient's error": f"{errors['gradient']:.1e}" if errors else MISSING,
        "copies of the memory": str(row.get("copies", MISSING)),
    }


def parts_table(cases: CaseRows) -> str:
    """A line for each implementation that has parts; empty where none has."""
    lines = [
        _parts_line(case, row)
        for case, rows in cases.items()
        for row in rows.values()
        if row.get("parts")
    ]
    return table(lines) if lines else ""


def _parts_line(case: AnyCase, row: Mapping[str, Any]) -> Line:
    cells = dict.fromkeys((FORWARD, BACKWARD, ENQUEUE, UPDATE), MISSING)
    for name, part in row["parts"].items():
        cells[name] = spread_text(part["seconds"], CUDA_UNITS)
        if ceiling := part.get("ceiling"):
            cells[name] += f" ({percent(ceiling['share'])}, {ceiling['bound']})"
    titled = {f"{name}, {CUDA_UNITS.time} [p20–p80]": cell for name, cell in cells.items()}
    return {case.section: case.name, "implementation": row["implementation"], **titled}
