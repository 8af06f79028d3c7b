"""A record as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import AnyCase, from_fields
from benchmarks.ceilings import Ceilings
from benchmarks.figures import (
    MISSING,
    PUBLISHED,
    Line,
    Units,
    best_sdpa,
    memory_text,
    share_text,
    spread_text,
    table,
    three_digits,
    units_of,
)
from benchmarks.implementation_tables import parts_table, steps_table
from benchmarks.part_tables import (
    SCALING,
    breakdown_table,
    breakdown_title,
    host_table,
    points_table,
    scaling_table,
)
from benchmarks.peers import Compiled, Fused

EVERY = "Every implementation; in brackets the share of the ceiling.\n"
PARTS = """\
Forward with what it writes, backward, and what is written alone. In brackets the share of the
ceiling: for the similarities' products in forward and the others in backward, or for the bytes that
a part needs. rrd_kernels computes the gradient in forward. SDPA's step is a closed form, which has
no halves.
"""

#: As in a record, by implementation; without "seconds" where there are no figures.
Rows = Mapping[str, dict[str, Any]]


def sections(record: Mapping[str, Any]) -> dict[str, dict[AnyCase, dict[str, dict[str, Any]]]]:
    """The record's rows by kind of memory, case and implementation."""
    found: dict[str, dict[AnyCase, dict[str, dict[str, Any]]]] = {}
    for row in record["rows"]:
        case = from_fields(row["case"])
        found.setdefault(case.section, {}).setdefault(case, {})[row["implementation"]] = row
    return found


def cases_table(record: Mapping[str, Any], section: str, spread: bool = False) -> str:
    """Of one kind of memory, a line a case.

    Args:
        record: of a run.
        section: as the cases have it.
        spread: whether times have their 20th and 80th percentiles.
    """
    units, ceilings = units_of(record), Ceilings.of_record(record)
    cases = sections(record)[section]
    return table([_case_line(case, cases[case], units, ceilings, spread) for case in cases])


def _case_line(case: AnyCase, rows: Rows, units: Units, ceilings: Ceilings, spread: bool) -> Line:
    published = next(row for name, row in rows.items() if name in PUBLISHED)
    compiled, ours = rows.get(Compiled.name, {}), rows[Fused.name]
    timed_rows = {name: row for name, row in rows.items() if "seconds" in row}
    best = best_sdpa({name: row["seconds"]["median"] for name, row in timed_rows.items()})
    sdpa = rows[best] if best else {}
    graphs = {name: row["replay"] for name, row in timed_rows.items() if row.get("replay")}
    in_graph = best_sdpa({name: graph["seconds"]["median"] for name, graph in graphs.items()})
    unit, bound = units.time, ceilings.bound(case)

    def timed(row: Mapping[str, Any], *more: str) -> str:
        if "seconds" not in row:
            return row.get("outcome", MISSING)
        median = row["seconds"]["median"]
        return spread_text(row["seconds"], units, spread) + share_text(bound, median, *more)

    in_a_graph = " → ".join(
        (
            timed(graphs.get(in_graph or "", {}), _kernel(in_graph)),
            timed(graphs.get(Fused.name, {})),
        )
    )
    least = MISSING
    if bound:
        least = f"{three_digits(units.per_second * bound.seconds)} ({bound.by})"
    return {
        case.section: case.name,
        f"published, {unit}": timed(published),
        f"torch.compile, {unit}": timed(compiled),
        f"best SDPA, {unit}": timed(sdpa, _kernel(best)),
        f"rrd_kernels, {unit}": timed(ours),
        "× published": _speedup(ours, published),
        "× compile": _speedup(ours, compiled),
        "× SDPA": _speedup(ours, sdpa),
        f"in a graph, {unit}: best SDPA → ours": in_a_graph if graphs else MISSING,
        f"ceiling, {unit}": least,
        "extra MiB, published → ours": _extra_memory(published, ours),
        "gradient's error, published → ours": _gradient_error(published, ours),
    }


def _kernel(sdpa: str | None) -> str:
    """Such as "flash"."""
    return (sdpa or "").removeprefix("SDPA").strip()


def _speedup(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    if "seconds" not in peer or "seconds" not in ours:
        return MISSING
    return f"{ours['speedup'][peer['implementation']]:.1f}"


def _extra_memory(*rows: Mapping[str, Any]) -> str:
    texts = [memory_text(row) for row in rows]
    return " → ".join(texts) if set(texts) != {MISSING} else MISSING


def _gradient_error(*rows: Mapping[str, Any]) -> str:
    """Relative to float64, in the Frobenius norm."""
    errors = [row.get("errors") for row in rows]
    texts = [f"{error['gradient']:.1e}" if error else MISSING for error in errors]
    return " → ".join(texts) if set(texts) != {MISSING} else MISSING


def document(record: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """All of a record.

    Args:
        record: of a run.
        pictures: the names of files beside it.
    """
    parts = ["# Time and memory of a step\n", source_text(record), ceilings_text(record)]
    units, ceilings = units_of(record), Ceilings.of_record(record)
    for section, cases in sections(record).items():
        parts += [f"## {section}\n", cases_table(record, section, spread=True)]
        parts += [EVERY, steps_table(cases, units, ceilings)]
    parts.append(further_parts(record))
    parts += [f"![{name}]({name})\n" for name in pictures]
    return "\n".join(parts)


def further_parts(record: Mapping[str, Any]) -> str:
    """What there is beside the cases."""
    parts = []
    if of_steps := [text for cases in sections(record).values() if (text := parts_table(cases))]:
        parts += ["## Parts of a step\n", PARTS, *of_steps]
    if record["scaling"]:
        parts += ["## Scaling\n", SCALING, scaling_table(record), points_table(record)]
    if record["host_time"]:
        parts += ["## Where the host's time goes\n", host_table(record)]
    if record["breakdowns"]:
        parts.append("## Where a step's time goes\n")
    for breakdown in record["breakdowns"]:
        of_case = breakdown_table(breakdown) if breakdown["parts"] else f"{breakdown['reason']}\n"
        parts.append(f"{breakdown_title(record, breakdown)}\n\n{of_case}")
    return "\n".join(parts)


def source_text(record: Mapping[str, Any]) -> str:
    """What the figures are of, a sentence."""
    if "gpu" in record:
        machine = record["gpu"].get("name", "a GPU")
    else:
        kernels = " and ".join(sorted(set(record["kernels"].values())))
        machine = f"{record['cpu']}, {record['threads']} threads, {kernels} kernels"
    took = f"; it took {record['took'] / 60:.1f} minutes" if "took" in record else ""
    changed = ", with changes" if record["uncommitted_changes"] else ""
    return (
        f"`{record.get('command', 'make bench')}` on {machine}, {record['date'][:10]}, PyTorch "
        f"{record['versions']['torch']}, commit {(record['commit'] or 'unknown')[:12]}{changed}"
        f"{took}.\n"
    )


def ceilings_text(record: Mapping[str, Any]) -> str:
    """The measured rates, a sentence."""
    ceilings, units = Ceilings.of_record(record), units_of(record)
    rates = [
        f"{rate / units.operations:.0f} {units.rate} in {name}"
        for name, rate in sorted(ceilings.mm_rate.items())
    ]
    copied = f", a copy {ceilings.copy_rate / 1e9:.1f} GB/s" if ceilings.copy_rate else ""
    return (
        f"In brackets the share of its ceiling. In this run torch.mm reached {', '.join(rates)}"
        f"{copied}.{_turns_text(record)}\n"
    )


def _turns_text(record: Mapping[str, Any]) -> str:
    """How many copies of a memory took turns; nothing of older records, in which none did."""
    if not (size := record.get("cache_bytes")):
        return ""
    counts = [row["copies"] for row in record["rows"] if "copies" in row]
    if not counts:
        return ""
    return (
        f" {min(counts)} to {max(counts)} copies of a memory took turns, so that none stayed in "
        f"the last cache, {size / 2**20:.0f} MiB."
    )
