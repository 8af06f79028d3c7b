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
    share_of_ceiling,
    spread_text,
    table,
    units_of,
)
from benchmarks.part_tables import breakdown_table, host_table, scaling_table
from benchmarks.peers import Compiled, Fused

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
    best = best_sdpa({name: row["gflops"] for name, row in rows.items() if "gflops" in row})
    sdpa = rows[best] if best else {}
    kernel = (best or "").removeprefix("SDPA").strip()
    named = f" ({kernel})" if kernel else ""
    unit = units.time
    graphs = [row.get("replay") for row in (sdpa, ours)]
    in_a_graph = " → ".join(_time(graph or {}, units, spread) for graph in graphs)
    return {
        case.section: case.name,
        f"published, {unit}": _time(published, units, spread),
        f"torch.compile, {unit}": _time(compiled, units, spread),
        f"best SDPA, {unit}": _time(sdpa, units, spread) + named,
        f"rrd_kernels, {unit}": _time(ours, units, spread),
        "× published": _speedup(ours, published),
        "× compile": _speedup(ours, compiled),
        "× SDPA": _speedup(ours, sdpa),
        f"in a graph, {unit}: best SDPA → ours": in_a_graph if any(graphs) else MISSING,
        "of its ceiling": _share(case, ours, ceilings),
        "extra MiB, published → ours": _extra_memory(published, ours),
        "gradient's error, published → ours": _gradient_error(published, ours),
    }


def _time(row: Mapping[str, Any], units: Units, spread: bool) -> str:
    if "seconds" not in row:
        return row.get("outcome", MISSING)
    return spread_text(row["seconds"], units, spread)


def _speedup(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    if "seconds" not in peer or "seconds" not in ours:
        return MISSING
    return f"{ours['speedup'][peer['implementation']]:.1f}"


def _share(case: AnyCase, row: Mapping[str, Any], ceilings: Ceilings) -> str:
    if "seconds" not in row:
        return MISSING
    best = (row.get("replay") or row)["seconds"]["median"]
    return share_of_ceiling(ceilings.bound(case), best)


def _extra_memory(*rows: Mapping[str, Any]) -> str:
    sizes = [row.get("extra_bytes") for row in rows]
    texts = [MISSING if size is None else f"{size / 2**20:.1f}" for size in sizes]
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
    for section in sections(record):
        parts += [f"## {section}\n", cases_table(record, section, spread=True)]
    parts.append(further_parts(record))
    parts += [f"![{name}]({name})\n" for name in pictures]
    return "\n".join(parts)


def further_parts(record: Mapping[str, Any]) -> str:
    """What there is beside the cases."""
    parts = []
    if record["scaling"]:
        parts += ["## Scaling\n", scaling_table(record)]
    if record["host_time"]:
        parts += ["## Where the host's time goes\n", host_table(record)]
    if record["breakdowns"]:
        parts.append("## Where a step's time goes\n")
    for breakdown in record["breakdowns"]:
        name = from_fields(breakdown["case"]).name
        of_case = breakdown_table(breakdown) if breakdown["parts"] else f"{breakdown['reason']}\n"
        parts.append(f"{name}, {breakdown['implementation']}\n\n{of_case}")
    return "\n".join(parts)


def source_text(record: Mapping[str, Any]) -> str:
    """What the figures are of, a sentence."""
    if "gpu" in record:
        machine = record["gpu"].get("name", "a GPU")
    else:
        kernels = " and ".join(sorted(set(record["kernels"].values())))
        machine = f"{record['cpu']}, {record['threads']} threads, {kernels} kernels"
    changed = ", with changes" if record["uncommitted_changes"] else ""
    return (
        f"`{record.get('command', 'make bench')}` on {machine}, {record['date'][:10]}, PyTorch "
        f"{record['versions']['torch']}, commit {(record['commit'] or 'unknown')[:12]}{changed}.\n"
    )


def ceilings_text(record: Mapping[str, Any]) -> str:
    """The measured rates, a sentence."""
    ceilings, units = Ceilings.of_record(record), units_of(record)
    rates = [
        f"{rate / units.operations:.0f} {units.rate} in {name}"
        for name, rate in sorted(ceilings.mm_rate.items())
    ]
    copied = f", a copy {ceilings.copy_rate / 1e9:.1f} GB/s" if ceilings.copy_rate else ""
    return f"In this run torch.mm reached {', '.join(rates)}{copied}.{_turns_text(record)}\n"


def _turns_text(record: Mapping[str, Any]) -> str:
    """How many copies of a memory took turns; nothing of older records, in which none did."""
    if not (size := record.get("cache_bytes")):
        return ""
    counts = [row["copies"] for row in record["rows"] if "copies" in row]
    most = f", {min(counts)} to {max(counts)} of them" if counts else ""
    return (
        f" Between two uses of a memory copies of it{most} went through the last cache, "
        f"{size / 2**20:.0f} MiB, where they fit it."
    )
