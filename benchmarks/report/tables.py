"""A record's tables, as Markdown and on the terminal: ``python -m benchmarks.report.tables FILE``.

All come from one frame, see :func:`frame`. Times are medians; in brackets is the share of the
ceiling.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.implementations.fifo import Fused, PublishedEager
from benchmarks.measuring.breakdown import OPERATOR
from benchmarks.measuring.growth import GROWTH
from benchmarks.measuring.host_time import HOST, KERNELS, WHOLE
from benchmarks.measuring.parts import STEP
from benchmarks.measuring.run import GRAPH
from benchmarks.report.record import Record, load

MISSING = "–"
#: Every column that a table may ask for; rows of older records lack some.
COLUMNS = (
    *("figure", "section", "case", "B", "K", "D", "format", "operations", "bytes"),
    *("implementation", "median", "p20", "p80", "rounds", "times_ours", "extra_bytes"),
    *("loss_error", "gradient_error", "memory_error", "copies", "not_captured", "no_memory"),
    *("axis", "memory_limit", "name", "calls", "outcome", "reason"),
)
#: Columns of output that is no terminal's, and a terminal's at least: no figure is cut off.
WIDTH = 200
#: What the measure of a CPU's memory cannot see: a fit counts it as this.
LEAST_BYTES = 1 << 18
#: Operators of an implementation that are listed.
LISTED = 6


def frame(record: Record) -> pd.DataFrame:
    """The record's rows, with ``ceiling`` (the seconds that the machine needs), ``bound``, which
    of its rates that is, ``share`` of the ceiling and ``rate``, operations per second.

    A share over 1 is possible: a memory that stays in cache is read faster than a copy, and
    torch.mm is not the fastest product that a machine can do.
    """
    rows = pd.DataFrame(record["rows"]).reindex(columns=list(COLUMNS))
    numbers = ["operations", "bytes", "median", "p20", "p80", "extra_bytes"]
    rows[numbers] = rows[numbers].astype(float)
    mm, copied = rates(record)
    bounds = pd.DataFrame(
        {
            "compute": rows.operations / rows.format.map(mm).astype(float),
            "bandwidth": rows.bytes / copied,
        }
    ).replace(0.0, np.nan)
    rows["ceiling"] = bounds.max(axis=1)
    rows["bound"] = bounds.dropna(how="all").idxmax(axis=1)
    rows["share"] = rows.ceiling / rows["median"]
    rows["rate"] = rows.operations.replace(0.0, np.nan) / rows["median"]
    return rows


def rates(record: Record) -> tuple[dict[str, float], float]:
    """Operations per second of torch.mm by format and bytes per second of a copy, NaN where it was
    not measured: the best of before and after the cases."""
    looks = [look for look in record["machine"].values() if look]
    mm = pd.DataFrame([look["mm_gflops"] for look in looks]).max() * 1e9
    copied = pd.Series([look.get("copy_gbytes_per_second") for look in looks], dtype=float)
    return mm.to_dict(), 1e9 * copied.max()


def unit(record: Record) -> tuple[str, float]:
    """Of times, and how many are a second."""
    return ("µs", 1e6) if "gpu" in record else ("ms", 1e3)


def three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def percent(share: float) -> str:
    """With a decimal below one in a hundred."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def text(value: float, form: Callable[[float], str]) -> str | None:
    """Nothing for what is missing, which tables show as a dash."""
    return None if pd.isna(value) else form(value)


def texts(values: pd.Series, form: str) -> pd.Series:
    return values.map(form.format, na_action="ignore")


def spread(row: pd.Series, scale: float) -> str:
    return "{} [{}–{}]".format(
        *(three_digits(scale * row[key]) for key in ("median", "p20", "p80"))
    )


def share(row: pd.Series) -> str | None:
    """Such as "81% (compute)"."""
    return text(row.share, lambda value: f"{percent(value)} ({row.bound})")


def cases_table(record: Record, section: str) -> pd.DataFrame:
    """A line for each case: every peer's time and how many times as long as this package's it is;
    of PyTorch's attention kernels the fastest."""
    rows = frame(record)
    rows = rows[(rows.section == section) & rows.figure.isin((STEP, GRAPH))]
    sdpa = rows.implementation.str.startswith("SDPA")
    best = rows[sdpa & rows["median"].notna()].groupby(["case", "figure"])["median"].idxmin()
    rows = rows[~sdpa | rows.index.isin(best)].copy()
    name, scale = unit(record)

    def cell(row: pd.Series) -> str:
        if pd.isna(row["median"]):
            return row.outcome
        kernel = row.implementation.removeprefix("SDPA ") if row.peer == "best SDPA" else None
        inside = [part for part in (text(row.share, percent), kernel) if part]
        taken = three_digits(scale * row["median"])
        return f"{taken} ({', '.join(inside)})" if inside else taken

    rows["peer"] = rows.implementation.mask(sdpa, "best SDPA").replace(
        PublishedEager.name, "published"
    )
    rows["cell"] = rows.apply(cell, axis=1)
    cases = rows.case.unique()
    steps = rows[rows.figure == STEP]
    order = [peer for peer in steps.peer.unique() if peer != Fused.name]
    times, ratios, extra, errors, graphs = (
        some.pivot(index="case", columns="peer", values=column).reindex(cases)
        for some, column in (
            (steps, "cell"),
            (steps, "times_ours"),
            (steps, "extra_bytes"),
            (steps, "gradient_error"),
            (rows[rows.figure == GRAPH], "cell"),
        )
    )
    table = times[[*order, Fused.name]].add_suffix(f", {name}")
    for peer in order:
        table[f"× {peer.removeprefix('best ')}"] = texts(ratios[peer], "{:.1f}")
    for peer in [peer for peer in ("best SDPA", Fused.name) if peer in graphs]:
        table[f"{peer} in a graph, {name}"] = graphs[peer]
    bounds = steps[steps.implementation == Fused.name].set_index("case").reindex(cases)
    table[f"ceiling, {name}"] = bounds.apply(
        lambda row: text(scale * row.ceiling, lambda value: f"{three_digits(value)} ({row.bound})"),
        axis=1,
    )
    table["extra MiB, published → ours"] = _both(extra / 2**20, "{:.1f}")
    table["gradient's error, published → ours"] = _both(errors, "{:.1e}")
    return table.rename_axis(section).reset_index()


def _both(figures: pd.DataFrame, form: str) -> pd.Series:
    """Of the published code and of this package, missing where both are."""
    figures = figures.reindex(columns=["published", Fused.name])
    texts = figures.map(form.format, na_action="ignore").astype(object)
    return texts.fillna(MISSING).agg(" → ".join, axis=1).where(figures.notna().any(axis=1))


def every_row(record: Record, figure: str) -> pd.DataFrame:
    """A line for each implementation and size."""
    rows = frame(record)
    graphs = rows[rows.figure == GRAPH].set_index(["case", "implementation"])
    rows = rows[rows.figure == figure]
    name, scale = unit(record)
    keys = list(zip(rows.case, rows.implementation, strict=True))
    in_graph = graphs.apply(spread, axis=1, scale=scale).to_dict() if len(graphs) else {}
    times = rows.apply(spread, axis=1, scale=scale)
    reasons = rows[["reason", "not_captured", "no_memory"]].astype(object).bfill(axis=1)
    return pd.DataFrame(
        {
            "case": rows.case,
            "implementation": rows.implementation,
            f"{name} [p20–p80]": times.where(rows["median"].notna(), rows.outcome),
            f"{name} in a graph": [in_graph.get(key) for key in keys],
            "GFLOP/s": texts(rows.rate / 1e9, "{:.0f}"),
            "of its ceiling": rows.apply(share, axis=1),
            "× ours": texts(rows.times_ours, "{:.2f}"),
            "rounds": texts(rows.rounds, "{:.0f}"),
            "extra MiB": texts(rows.extra_bytes / 2**20, "{:.1f}"),
            "loss's error": texts(rows.loss_error, "{:.1e}"),
            "gradient's error": texts(rows.gradient_error, "{:.1e}"),
            "copies": texts(rows.copies, "{:.0f}"),
            "why not": reasons.iloc[:, 0],
        }
    )


def implementations_table(record: Record) -> pd.DataFrame:
    """Every implementation; in brackets the 20th and 80th percentile of the rounds."""
    return every_row(record, STEP)


def points_table(record: Record) -> pd.DataFrame:
    """Every size along K and B."""
    return every_row(record, GROWTH)


def parts_table(record: Record) -> pd.DataFrame:
    """Forward with what it writes, backward, and what is written alone, in µs. rrd_kernels computes
    the gradient in forward. SDPA's step is a closed form, which has no halves."""
    rows = frame(record)
    parts = rows[~rows.figure.isin((STEP, GRAPH, GROWTH, HOST, OPERATOR))].copy()
    parts["cell"] = parts.apply(spread, axis=1, scale=1e6)
    index = ["case", "implementation"]
    order = pd.MultiIndex.from_frame(parts[index].drop_duplicates())
    table = parts.pivot(index=index, columns="figure", values="cell").reindex(order)
    table = table[list(parts.figure.unique())].add_suffix(", µs [p20–p80]")
    return table.rename_axis(columns=None).reset_index()


def exponent(xs: pd.Series, ys: pd.Series) -> str | None:
    """Such as "1.02 ±4%": a power law by least squares of the logarithms, and by how much a size
    lies off it; nothing for fewer than three sizes, which any line fits."""
    known = xs.notna() & ys.notna()
    if known.sum() < 3:
        return None
    log_x, log_y = np.log(xs[known].astype(float)), np.log(ys[known].astype(float))
    slope, constant = np.polyfit(log_x, log_y, 1)
    off = np.exp(np.sqrt(np.mean((log_y - constant - slope * log_x) ** 2))) - 1
    return f"{slope:.2f} ±{off:.0%}"


def growth_table(record: Record) -> pd.DataFrame:
    """How time and memory grow with K and with B until memory runs out, and the largest size.

    An exponent 1 is proportional growth; ± is by how much a size lies off the fit. torch.compile,
    which compiles anew for each size, and SDPA's math kernel are left out.
    """
    rows = frame(record)
    rows = rows[rows.figure == GROWTH]
    name, scale = unit(record)
    lines = []
    for (axis, implementation), one in rows.groupby(["axis", "implementation"], sort=False):
        letter = axis[0]
        timed, failed = one[one["median"].notna()], one[one.outcome.notna()]
        line = {"what grows": axis, "implementation": implementation}
        line["exponent of time"] = exponent(timed[letter], timed["median"])
        sizes = timed.extra_bytes.clip(lower=LEAST_BYTES)
        line["exponent of extra memory"] = exponent(timed[letter], sizes)
        if len(timed):
            last = timed.iloc[-1]
            line |= {
                "largest that ran": f"{letter} = {last[letter]}",
                f"there, {name}": three_digits(scale * last["median"]),
                "rounds there": f"{last.rounds:.0f}",
                "there, of its ceiling": share(last),
                "there, extra MiB": text(last.extra_bytes / 2**20, three_digits),
            }
        if len(failed):
            line["then"] = f"{failed.iloc[0].outcome} at {failed.iloc[0][letter]}"
        lines.append(line)
    return pd.DataFrame(lines)


def host_table(record: Record) -> pd.DataFrame:
    """Where the microseconds of one training step of `RRDLoss` go, from features, its backward
    included. Calls that each contain the one before are timed in turn; a line is the median of
    their differences."""
    rows = frame(record)
    rows = rows[rows.figure == HOST]
    whole = rows.loc[rows.name == WHOLE, "median"].iloc[0]
    # A GPU's kernels run beside the host.
    beside = rows.name.str.startswith(KERNELS) if "gpu" in record else rows.name == ""
    rest = whole - rows.loc[(rows.name != WHOLE) & ~beside, "median"].sum()
    table = pd.DataFrame(
        {
            rows.case.iloc[0]: rows.name,
            "µs [p20–p80]": rows.apply(spread, axis=1, scale=1e6),
            "of the step": (rows["median"] / whole).map("{:.1%}".format),
            "of its ceiling": rows.apply(share, axis=1),
        }
    )
    others = ["in none of these", three_digits(1e6 * rest), f"{rest / whole:.1%}", None]
    last = pd.DataFrame([others], columns=table.columns)
    return pd.concat([table[:-1], last, table[-1:]], ignore_index=True)


def operators_table(record: Record) -> pd.DataFrame:
    """The operators, or a GPU's kernels, that a step consists of, as profiled: the longest, and
    the others together."""
    lines = []
    for (case, kind), parts in operators(record).groupby(["case", "implementation"], sort=False):
        whole = parts["median"].sum()
        for name, calls, seconds in zip(parts.name, parts.calls, parts["median"], strict=True):
            line = {"case": case, "implementation": kind, "operator": f"`{name}`"}
            line |= {"calls": f"{calls:g}", "µs": three_digits(1e6 * seconds)}
            lines.append(line | {"share": f"{seconds / whole:.0%}"})
    return pd.DataFrame(lines)


def operators(record: Record) -> pd.DataFrame:
    """The rows of the longest operators with short names, and one for the others together."""
    rows = frame(record)
    rows = rows[(rows.figure == OPERATOR) & rows["median"].notna()].copy()
    rows["name"] = (
        rows.name.str.removeprefix("autograd::engine::evaluate_function: ")
        .str.strip("# ")
        .str.replace(r"(CompiledFxGraph) (\w{4})\w+", r"\1 \2…", regex=True)
        .str.replace(r"^(.{47}).{2,}$", r"\1…", regex=True)
    )
    keys = ["case", "implementation"]
    at = rows.groupby(keys, sort=False).cumcount()
    rows.loc[at >= LISTED, "name"] = "others"
    return rows.groupby([*keys, "name"], sort=False)[["median", "calls"]].sum().reset_index()


def source_text(record: Record) -> str:
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


def ceilings_text(record: Record) -> str:
    """The measured rates, a sentence; and how many copies of a memory took turns, which in older
    records none did."""
    mm, copied = rates(record)
    reached = [f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in sorted(mm.items())]
    if pd.notna(copied):
        reached.append(f"a copy {copied / 1e9:.1f} GB/s")
    rows = frame(record)
    copies = rows.copies[rows.figure == STEP].dropna()
    turns = ""
    if record.get("cache_bytes") and len(copies):
        turns = (
            f" {copies.min():.0f} to {copies.max():.0f} copies of a memory took turns, so that "
            f"none stayed in the last cache, {record['cache_bytes'] / 2**20:.0f} MiB."
        )
    return (
        f"In brackets the share of its ceiling. In this run torch.mm reached {', '.join(reached)}."
        f"{turns}\n"
    )


def markdown(table: pd.DataFrame) -> str:
    """The first column left, the others right; without those that no line has."""
    table = table.dropna(axis=1, how="all").fillna(MISSING)
    rule = ["---", *["--:"] * (len(table.columns) - 1)]
    head, *lines = (
        f"| {' | '.join(map(str, line))} |\n"
        for line in (table.columns, *table.itertuples(index=False))
    )
    return "".join((head, f"|{'|'.join(rule)}|\n", *lines))


def print_table(table: pd.DataFrame | list[dict[str, str]], title: str | None = None) -> None:
    """On the terminal."""
    table = pd.DataFrame(table).dropna(axis=1, how="all").fillna(MISSING)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for at, column in enumerate(table):
        shown.add_column(str(column), justify="right" if at else "left", no_wrap=at < 2)
    for line in table.itertuples(index=False):
        shown.add_row(*map(str, line))
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(shown)


def tables(record: Record) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Title, explanation and table of all that the record has."""
    figures = {row["figure"] for row in record["rows"]}
    for section in dict.fromkeys(row["section"] for row in record["rows"] if row["figure"] == STEP):
        yield section, ceilings_text(record), cases_table(record, section)
    for figure, title, table in (
        (STEP, "Every implementation", implementations_table),
        ("forward", "Parts of a step", parts_table),
        (GROWTH, "Growth", growth_table),
        (GROWTH, "Growth, every size", points_table),
        (HOST, "Where the host's time goes", host_table),
        (OPERATOR, "Operators and kernels", operators_table),
    ):
        if figure in figures:
            yield title, explanation(table), table(record)


def explanation(table: Callable[[Record], pd.DataFrame]) -> str:
    return " ".join((table.__doc__ or "").split()) + "\n"


def document(record: Record) -> str:
    """All of a record as Markdown."""
    parts = ["# Time and memory of a step\n", source_text(record)]
    for title, explained, table in tables(record):
        parts += [f"## {title}\n", explained, markdown(table)]
    return "\n".join(parts)


def print_all(record: Record) -> None:
    for title, explained, table in tables(record):
        print(explained, end="")
        print_table(table, title)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.tables",
        description="Prints a record's tables, and writes them beside it as Markdown.",
    )
    parser.add_argument("record", type=Path, help="a JSON file that benchmarks.report wrote")
    path: Path = parser.parse_args().record
    try:
        record = load(path)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print_all(record)
    path.with_suffix(".md").write_text(document(record))


if __name__ == "__main__":
    main()
