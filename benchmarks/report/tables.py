"""A record's tables. All come from one frame, see :func:`frame`; times are medians."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.cases.sizes import Case, FamilyCase
from benchmarks.measuring.run import GRAPH, GROWTH, OPERATOR, OURS, STEP
from benchmarks.report.record import Record
from benchmarks.report.targets import ON_CPUS, ON_GPUS, Target

#: Every field that a table asks for; rows of one kind or of older records lack some.
WORDS = """figure section case method format implementation axis name outcome reason not_captured
    no_memory"""
NUMBERS = """B K D operations bytes median p20 p80 rounds times_ours extra_bytes loss_error
    gradient_error copies memory_limit calls"""
TYPES = dict.fromkeys(NUMBERS.split(), "float") | dict.fromkeys(WORDS.split(), "str")
UNITS = ((1, "s"), (1e3, "ms"), (1e6, "µs"))
LISTED = 6  # operators of an implementation
PLAIN = ("published eager", "torch.compile")
#: What the README shows, and how it names it.
GAIN = {
    "float32 64×16384": "published size: B = 64, K = 16 384, float32",
    "float32 256×65536": "B = 256, K = 65 536, float32",
    "bfloat16 256×65536": "B = 256, K = 65 536, bfloat16",
    "float32 256×131072 D=512": "B = 256, K = 131 072, D = 512, float32",
    "float32 momentum 64×16384 of 50000": "momentum memory of 50 000 rows, B = 64, K = 16 384",
}


def frame(record: Record) -> pd.DataFrame:
    """The record's rows, with ``ceiling`` (the seconds that the machine needs), ``bound``, by which
    of its rates, and ``share``, of the ceiling. That can be over 1: a memory in cache is read
    faster than a copy, and torch.mm is not the fastest product that a machine can do."""
    rows = pd.DataFrame(record["rows"], columns=list(TYPES)).astype(TYPES)
    rows = rows[rows.format != "int64"].copy()  # older records have draws of negatives
    mm, copied = rates(record)
    whole = rows.figure.str.contains(f"{STEP}|{GROWTH}")  # not parts, of unknown ceilings
    compute = rows.operations.where(whole) / rows.format.map(mm).astype(float)
    bandwidth = rows.bytes.where(whole) / copied
    rows["ceiling"] = np.fmax(compute, bandwidth)
    rows["bound"] = np.where(compute >= bandwidth, "compute", "bandwidth")
    rows["share"] = rows.ceiling / rows["median"]
    return rows


def rates(record: Record) -> tuple[dict[str, float], float]:
    """Operations per second of torch.mm by format and bytes per second of a copy, if it was
    measured: the best of before and after the cases."""
    looks = [look for look in record["machine"].values() if look]
    mm = pd.DataFrame([look["mm_gflops"] for look in looks]).max() * 1e9
    copies = [look["copy_gbytes_per_second"] for look in looks]
    return mm.to_dict(), 1e9 * max(copies, default=np.nan)


def texts(values: pd.Series, form: Callable[..., str]) -> pd.Series:
    """Missing where the values are."""
    return values.astype(object).map(form, na_action="ignore").astype("str")


def duration(seconds: float) -> str:
    """In three digits, such as "5.10 ms"."""
    scale, unit = next(found for found in UNITS if seconds * found[0] >= 1 or found == UNITS[-1])
    value = seconds * scale
    return f"{value:.{sum(abs(value) < limit for limit in (1, 10, 100))}f} {unit}"


def cases_table(rows: pd.DataFrame, section: str, between: str = ", ") -> pd.DataFrame:
    """A line for each case, a column for each implementation: a step's time and share of the
    ceiling, then, after ``between``, times ours and extra memory."""
    rows = rows[(rows.section == section) & rows.figure.isin((STEP, GRAPH))]
    ratio = texts(rows.times_ours, (between + "{:.1f}×").format).mask(rows.implementation == OURS)
    memory = texts(rows.extra_bytes / 2**20, "{:.1f} MiB".format)
    memory = ratio.isna().map({True: between, False: ", "}) + memory
    share = texts(rows.share, " ({:.0%})".format)
    cells = texts(rows["median"], duration) + share + ratio.fillna("") + memory.fillna("")
    columns = rows.implementation + rows.figure.map({STEP: "", GRAPH: " in a graph"})
    table = rows.assign(column=columns, cell=cells.fillna(rows.outcome))
    table = table.pivot(index="case", columns="column", values="cell")
    return table.loc[rows.case.unique(), columns.unique()].rename_axis(section).reset_index()


def gain_table(
    rows: pd.DataFrame, names: Mapping[str, str] = GAIN, plain: Sequence[str] = PLAIN
) -> pd.DataFrame:
    """A line for each case of ``names``: time and extra memory of plain PyTorch and of ours."""
    rows = rows[(rows.figure == STEP) & rows.case.isin(list(names))]
    cells = texts(rows["median"], duration) + texts(rows.extra_bytes / 2**20, ", {:.1f} MiB".format)
    table = rows.assign(cell=cells).pivot(index="case", columns="implementation", values="cell")
    table = table.reindex([case for case in names if case in table.index], columns=[*plain, OURS])
    slower = rows[rows.implementation == PLAIN[0]].set_index("case").times_ours
    table["faster than published"] = texts(slower.reindex(table.index), "{:.1f}×".format)
    return table.rename(index=names).rename_axis("one training step").reset_index()


def family_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The gain over the published code of each method of the relational family."""
    cases = rows.case[rows.section == FamilyCase.section].unique()
    return gain_table(rows, {case: f"{case}, float32" for case in cases}, PLAIN[:1])


def targets_table(rows: pd.DataFrame, section: str, on_gpu: bool) -> pd.DataFrame:
    """A line for each target that is listed after a section, if one of its cases was run: met,
    missed, or not measured."""
    targets = (ON_GPUS if on_gpu else ON_CPUS).get(section, ())
    rows = rows[rows.figure.isin((STEP, GRAPH))]
    found = rows.set_index(["case", "implementation", "figure"])

    def value(target: Target) -> float:
        cases = (target.case, target.beside) if target.beside else (target.case,)
        keys = [(case, target.implementation, target.figure) for case in cases]
        first, *other = (found[target.column].get(key, math.nan) for key in keys)
        return first - sum(other)

    def line(target: Target) -> tuple[str, str, str, str]:
        measured = value(target)
        if math.isnan(measured):
            return target.case, target.text, "–", "not measured"
        result = "met" if target.met(measured) else "missed"
        return target.case, target.text, target.measured(measured), result

    columns = ["case", "target", "measured", "result"]
    run = set(rows.case) & {target.case for target in targets}
    return pd.DataFrame([line(target) for target in targets] if run else [], columns=columns)


def errors_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line for each case of the FIFO memory: every implementation's error of the gradient."""
    rows = rows[(rows.section == Case.section) & (rows.figure == STEP)]
    cells = rows.assign(cell=texts(rows.gradient_error, "{:.1e}".format))
    table = cells.pivot(index="case", columns="implementation", values="cell")
    table = table.loc[rows.case.unique(), rows.implementation.unique()]
    return table.rename_axis("error of the gradient").reset_index()


def listing(rows: pd.DataFrame) -> pd.DataFrame:
    """A line for each row of :func:`frame`, with all that rows of its kind have."""
    columns = {
        "case": rows.case,
        "implementation": rows.implementation,
        "figure": rows.figure,
        "part": rows.name,
        "calls": texts(rows.calls, "{:g}".format),
        "median": texts(rows["median"], duration).fillna(rows.outcome),
        "p20–p80": texts(rows.p20, duration) + " – " + texts(rows.p80, duration),
        "share of ceiling": texts(rows.share, "{:.0%}".format) + " (" + rows.bound + ")",
        "× rrd_kernels": texts(rows.times_ours, "{:.2f}".format),
        "rounds": texts(rows.rounds, "{:.0f}".format),
        "extra MiB": texts(rows.extra_bytes / 2**20, "{:.1f}".format),
        "loss error": texts(rows.loss_error, "{:.1e}".format),
        "gradient error": texts(rows.gradient_error, "{:.1e}".format),
        "memories in turn": texts(rows.copies, "{:.0f}".format),
        "reason": rows.reason.fillna(rows.not_captured).fillna(rows.no_memory),
    }
    return pd.DataFrame(columns).dropna(axis=1, how="all")


def operators(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the longest operators with short names, and one for the others together."""
    rows = rows[(rows.figure == OPERATOR) & rows["median"].notna()].copy()
    # Without what templates are filled with, which Markdown would take for tags.
    names = rows.name.str.replace(r"^autograd.*evaluate_function: |<.*|#", "", regex=True)
    rows["name"] = names.str.strip().str.slice(0, 48)
    keys = ["case", "implementation", "name"]
    rows.loc[rows.groupby(keys[:2], sort=False).cumcount() >= LISTED, "name"] = "others"
    summed = dict.fromkeys(rows.columns.drop(keys), "first") | {"calls": "sum", "median": "sum"}
    return rows.groupby(keys, sort=False, as_index=False).agg(summed)


def source_text(record: Record) -> str:
    """What the figures are of."""
    kernels = " and ".join(sorted(set(record.get("kernels", {}).values())))
    machine = f"{record['cpu']}, {record['threads']} threads, {kernels} kernels"
    machine = record["gpu"]["name"] if "gpu" in record else machine
    commit = (record["commit"] or "unknown")[:12]
    commit += ", with changes" if record["uncommitted_changes"] else ""
    mm, copied = rates(record)
    reached = [f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in sorted(mm.items())]
    return (
        f"`{record['command']}` on {machine}, {record['date'][:10]}, PyTorch "
        f"{record['versions']['torch']}, commit {commit}; it took {record['took'] / 60:.1f} "
        f"minutes. torch.mm reached {', '.join(reached)}, a copy {copied / 1e9:.1f} GB/s.\n"
    )


def markdown(table: pd.DataFrame) -> str:
    """The first column left, the others right; without those that no line has."""
    table = table.dropna(axis=1, how="all").fillna("–")
    rows = (table.columns, *table.itertuples(index=False))
    head, *lines = (f"| {' | '.join(map(str, row))} |\n" for row in rows)
    return "".join((head, f"|---{'|--:' * (len(table.columns) - 1)}|\n", *lines))


def targets_text(rows: pd.DataFrame, section: str, record: Record) -> list[str]:
    """The table of targets as Markdown, where there are any."""
    on_gpu = "gpu" in record
    found = targets_table(rows, section, on_gpu)
    title = ["The targets are an H200's:\n"] if on_gpu else []
    return [] if found.empty else [*title, markdown(found)]


def document(record: Record) -> str:
    """All of a record as Markdown."""
    rows = frame(record)
    parts = ["# Time and memory of a step\n", source_text(record)]
    for section in rows.section[rows.figure == STEP].unique():
        parts.append(markdown(cases_table(rows, section)))
        parts += targets_text(rows, section, record)
    rows = pd.concat([rows[rows.figure != OPERATOR], operators(rows)])
    for figure, some in rows.groupby("figure", sort=False):
        parts += [f"## {figure}\n", markdown(listing(some))]
    return "\n".join(parts)


def print_markdown(text: str) -> None:
    console = Console()
    console.width = max(console.width, 240)  # so that no figure is cut off
    console.print(Markdown(text))
