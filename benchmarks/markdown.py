"""A record as Markdown tables. A column that no line has is left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import host_time, scaling
from benchmarks.cases import AnyCase, from_fields
from benchmarks.ceilings import Ceilings
from benchmarks.figures import (
    CPU_UNITS,
    CUDA_UNITS,
    MISSING,
    PUBLISHED,
    Units,
    best_sdpa,
    share_of_ceiling,
    three_digits,
)
from benchmarks.fits import PowerLaw
from benchmarks.peers import Compiled, Fused

#: The first title is the line's name.
Line = Mapping[str, str]
#: As in a record, by implementation; without "seconds" where there are no figures.
Rows = Mapping[str, dict[str, Any]]
#: Of a breakdown, the parts that are listed.
LISTED_PARTS = 6


def table(lines: Sequence[Line]) -> str:
    """A Markdown table, the first column left, the others right."""
    name, *titles = lines[0]
    shown = [title for title in titles if any(line[title] != MISSING for line in lines)]
    rows = [[name, *shown], ["---", *["--:"] * len(shown)]]
    rows += [[line[title] for title in (name, *shown)] for line in lines]
    head, rule, *rest = ("| " + " | ".join(cells) + " |" for cells in rows)
    return "\n".join([head, rule.replace(" ", ""), *rest]) + "\n"


def units_of(record: Mapping[str, Any]) -> Units:
    return CUDA_UNITS if "gpu" in record else CPU_UNITS


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


def spread_text(seconds: Mapping[str, float], units: Units, spread: bool = True) -> str:
    """The median, and the percentiles if ``spread``, without the unit."""
    median, p20, p80 = (
        three_digits(units.per_second * seconds[name]) for name in ("median", "p20", "p80")
    )
    return f"{median} [{p20}–{p80}]" if spread else median


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


def scaling_table(record: Mapping[str, Any]) -> str:
    """A line for each implementation along each axis."""
    units = units_of(record)
    return table([_series_line(scaling.from_record(one), units) for one in record["scaling"]])


def _series_line(series: scaling.Series, units: Units) -> Line:
    axis, figures = series.axis, [point for point in series.points if point.seconds]
    letter, other = ("K", "B") if axis.name == "rows" else ("B", "K")
    fixed = axis.case.batch if axis.name == "rows" else axis.case.rows
    last = figures[-1] if figures else None
    end = series.points[-1]
    largest = "none" if last is None else f"{letter} = {last.value}"
    failed = f", {end.outcome} at {end.value}" if end.outcome else ""
    size = last.extra_bytes if last else None
    return {
        "what grows": f"{letter} from {axis.values[0]}, {other} = {fixed}",
        "implementation": series.implementation,
        "time grows as": growth(letter, series.time),
        "extra memory grows as": growth(letter, series.memory),
        "largest that ran": largest + failed,
        f"there, {units.time}": three_digits(units.per_second * last.seconds.median)
        if last and last.seconds
        else MISSING,
        "there, extra MiB": MISSING if size is None else three_digits(size / 2**20),
    }


def growth(letter: str, fit: PowerLaw | None) -> str:
    """Such as "K^1.02 (±4 %)"."""
    if fit is None:
        return MISSING
    return f"{letter}^{fit.exponent:.2f} (±{fit.off_by - 1:.0%})"


def host_table(record: Mapping[str, Any]) -> str:
    """The layers of one step, the whole of it last."""
    profile = record["host_time"]
    whole = profile["step"]["median"]
    name = f"{profile['batch']}×{profile['rows']}, D = {host_time.DIM}"
    lines = [
        {
            name: layer["name"],
            "µs [p20–p80]": spread_text(layer["seconds"], CUDA_UNITS),
            "of the step": f"{layer['seconds']['median'] / whole:.1%}",
        }
        for layer in profile["layers"]
    ]
    if profile["launches"] is not None:
        driver = profile["launch_seconds"]
        lines.append(
            {
                name: f"of the operator, {profile['launches']} launches in the driver (profiled)",
                "µs [p20–p80]": three_digits(1e6 * driver),
                "of the step": f"{driver / whole:.1%}",
            }
        )
    last = {"µs [p20–p80]": spread_text(profile["step"], CUDA_UNITS), "of the step": "100 %"}
    return table([*lines, {name: "the whole step, measured for itself", **last}])


def breakdown_table(breakdown: Mapping[str, Any]) -> str:
    """The longest parts of one implementation's step, the others together."""
    parts = breakdown["parts"]
    listed, others = parts[:LISTED_PARTS], parts[LISTED_PARTS:]
    whole = sum(part["seconds"] for part in parts)
    lines = [(f"`{short(part['name'])}`", part["calls"], part["seconds"]) for part in listed]
    if others:
        rest = [sum(part[key] for part in others) for key in ("calls", "seconds")]
        lines.append((f"{len(others)} others", *rest))
    return table(
        [
            {
                breakdown["implementation"]: name,
                "calls": f"{calls:g}",
                "µs": three_digits(1e6 * seconds),
                "share": f"{seconds / whole:.0%}",
            }
            for name, calls, seconds in lines
        ]
    )


def short(name: str) -> str:
    """An operator's or a kernel's name without its namespaces' and templates' depths."""
    name = name.removeprefix("autograd::engine::evaluate_function: ").strip("# ")
    return name if len(name) <= 48 else name[:47] + "…"


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
    return f"In this run torch.mm reached {', '.join(rates)}{copied}.\n"
