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
#: Every column that a table may ask for; rows of one kind or of older records lack some.
NUMBERS = (
    *("operations", "bytes", "median", "p20", "p80", "rounds", "times_ours", "extra_bytes"),
    *("loss_error", "gradient_error", "memory_error", "copies", "memory_limit", "calls"),
)
WORDS = (
    *("figure", "section", "case", "format", "implementation", "axis", "name"),
    *("outcome", "reason", "not_captured", "no_memory"),
)
COLUMNS = [*NUMBERS, *WORDS, "B", "K", "D"]
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
    rows = pd.DataFrame(record["rows"]).reindex(columns=COLUMNS)
    rows[list(NUMBERS)] = rows[list(NUMBERS)].astype(float)
    rows[list(WORDS)] = rows[list(WORDS)].astype("str")
    # Of a step's parts it is not known what they need at least.
    whole = rows.figure.isin((STEP, GRAPH, GROWTH, HOST))
    rows.loc[~whole, ["operations", "bytes"]] = np.nan
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
    decimals = sum(abs(value) < limit for limit in (1, 10, 100))
    return f"{value:.{decimals}f}"


def percent(share: float) -> str:
    """With a decimal below one in a hundred."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def texts(values: pd.Series, form: Callable[..., str]) -> pd.Series:
    """Missing where the values are, which tables show as a dash."""
    return values.astype(object).map(form, na_action="ignore").astype("str")


def spreads(rows: pd.DataFrame, scale: float) -> pd.Series:
    """Such as "5.10 [4.95–5.20]": medians, and the percentiles where there are any."""
    median, p20, p80 = (texts(scale * rows[key], three_digits) for key in ("median", "p20", "p80"))
    return (median + (" [" + p20 + "–" + p80 + "]").fillna("")).fillna(rows.outcome)


def cases_table(record: Record, section: str) -> pd.DataFrame:
    """A line for each case: every peer's time and how many times as long as this package's it is;
    of PyTorch's attention kernels the fastest."""
    rows = frame(record)
    rows = rows[(rows.section == section) & rows.figure.isin((STEP, GRAPH))]
    kernels = rows.implementation.str.extract("SDPA (.*)")[0]
    timed = rows[kernels.notna() & rows["median"].notna()]
    best = timed.groupby(["case", "figure"])["median"].idxmin()
    rows = rows[kernels.isna() | rows.index.isin(best)].copy()
    name, scale = unit(record)
    names = {PublishedEager.name: "published"}
    rows["peer"] = rows.implementation.replace(names).mask(kernels.notna(), "best SDPA")
    inside = texts(rows.share, percent).fillna("") + (", " + kernels).fillna("")
    inside = (" (" + inside.str.removeprefix(", ") + ")").where(inside != "", "")
    rows["cell"] = (texts(rows["median"] * scale, three_digits) + inside).fillna(rows.outcome)
    steps, in_graph = rows[rows.figure == STEP], rows[rows.figure == GRAPH]
    times, ratios, extra, errors, graphs = (
        some.pivot(index="case", columns="peer", values=column).reindex(rows.case.unique())
        for some, column in (
            (steps, "cell"),
            (steps, "times_ours"),
            (steps, "extra_bytes"),
            (steps, "gradient_error"),
            (in_graph, "cell"),
        )
    )
    peers = [peer for peer in steps.peer.unique() if peer != Fused.name]
    table = times[[*peers, Fused.name]].add_suffix(f", {name}")
    for peer in peers:
        table[f"× {peer.removeprefix('best ')}"] = texts(ratios[peer], "{:.1f}".format)
    for peer in graphs.columns.intersection(["best SDPA", Fused.name]):
        table[f"{peer} in a graph, {name}"] = graphs[peer]
    ours = steps[steps.implementation == Fused.name].set_index("case")
    table[f"ceiling, {name}"] = texts(ours.ceiling * scale, three_digits) + " (" + ours.bound + ")"
    table["extra MiB, published → ours"] = _both(extra / 2**20, "{:.1f}".format)
    table["gradient's error, published → ours"] = _both(errors, "{:.1e}".format)
    return table.rename_axis(section).reset_index()


def _both(figures: pd.DataFrame, form: Callable[..., str]) -> pd.Series:
    """Of the published code and of this package, missing where both are."""
    published, ours = (
        texts(figures.get(name, figures.iloc[:, 0] * np.nan), form)
        for name in ("published", Fused.name)
    )
    both = published.fillna(MISSING) + " → " + ours.fillna(MISSING)
    return both.where(published.notna() | ours.notna())


def listing(rows: pd.DataFrame, name: str, scale: float) -> pd.DataFrame:
    """A line for each row, with all that rows of its kind have.

    Args:
        rows: of :func:`frame`.
        name, scale: the unit of times, and how many are a second.
    """
    columns = {
        "case": rows.case,
        "implementation": rows.implementation,
        "figure": rows.figure,
        "part": rows.name,
        "calls": texts(rows.calls, "{:g}".format),
        f"{name} [p20–p80]": spreads(rows, scale),
        "GFLOP/s": texts(rows.rate / 1e9, "{:.0f}".format),
        "of its ceiling": texts(rows.share, percent) + " (" + rows.bound + ")",
        "× ours": texts(rows.times_ours, "{:.2f}".format),
        "rounds": texts(rows.rounds, "{:.0f}".format),
        "extra MiB": texts(rows.extra_bytes / 2**20, "{:.1f}".format),
        "loss's error": texts(rows.loss_error, "{:.1e}".format),
        "gradient's error": texts(rows.gradient_error, "{:.1e}".format),
        "copies": texts(rows.copies, "{:.0f}".format),
        "why not": rows[["reason", "not_captured", "no_memory"]]
        .astype(object)
        .bfill(axis=1)
        .iloc[:, 0],
    }
    return pd.DataFrame(columns).dropna(axis=1, how="all")


def implementations_table(record: Record) -> pd.DataFrame:
    """Every implementation: forward with what it writes, backward, and what is written alone too;
    rrd_kernels computes the gradient in forward, and SDPA's closed form has no halves."""
    rows = frame(record)
    rows = rows[~rows.figure.isin((GROWTH, HOST, OPERATOR))]
    return listing(rows, *unit(record))


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

    An exponent 1 is proportional growth; ± is by how much a size lies off the fit. Left out are
    torch.compile, which compiles anew for each size, SDPA's math kernel and linear_cross_entropy,
    whose matrices are those of the published code.
    """
    rows = frame(record)
    name, scale = unit(record)
    lines = []
    series = rows[rows.figure == GROWTH].groupby(["axis", "implementation"], sort=False)
    for (axis, implementation), one in series:
        timed, failed = one[one["median"].notna()], one[one.outcome.notna()]
        sizes, last = timed[axis[0]], timed.tail(1)
        there = listing(last, name, scale)
        lines.append(
            {
                "what grows": axis,
                "implementation": implementation,
                "exponent of time": exponent(sizes, timed["median"]),
                "exponent of extra memory": exponent(
                    sizes, timed.extra_bytes.clip(lower=LEAST_BYTES)
                ),
                "largest that ran": " ".join(f"{axis[0]} = {size}" for size in last[axis[0]]),
                f"there, {name}": " ".join(texts(scale * last["median"], three_digits)),
                **{
                    f"there, {title}": " ".join(there[title])
                    for title in ("rounds", "of its ceiling", "extra MiB")
                    if title in there
                },
                "then": " ".join(failed.outcome + " at " + failed[axis[0]].astype(str)) or None,
            }
        )
    return pd.DataFrame(lines)


def points_table(record: Record) -> pd.DataFrame:
    """Every size along K and B."""
    rows = frame(record)
    return listing(rows[rows.figure == GROWTH], *unit(record)).drop(columns="figure")


def host_table(record: Record) -> pd.DataFrame:
    """Where the microseconds of one training step of `RRDLoss` go, from features, its backward
    included. Calls that each contain the one before are timed in turn; a line is the median of
    their differences."""
    rows = frame(record)
    rows = rows[rows.figure == HOST]
    whole = rows.loc[rows.name == WHOLE, "median"].item()
    # A GPU's kernels run beside the host.
    beside = rows.name.str.startswith(KERNELS) & ("gpu" in record)
    rest = whole - rows.loc[(rows.name != WHOLE) & ~beside, "median"].sum()
    others = rows[-1:].assign(name="in none of these", median=rest, p20=np.nan, share=np.nan)
    rows = pd.concat([rows[:-1], others, rows[-1:]])
    table = listing(rows, "µs", 1e6)[["part", "µs [p20–p80]", "of its ceiling"]]
    table["of the step"] = texts(rows["median"] / whole, "{:.1%}".format)
    return table.rename(columns={"part": rows.case.iloc[0]})


def operators_table(record: Record) -> pd.DataFrame:
    """The operators, or a GPU's kernels, that a step consists of, as profiled: the longest, and
    the others together."""
    rows = operators(record)
    table = listing(rows, "µs", 1e6).drop(columns="figure")
    whole = rows.groupby(["case", "implementation"])["median"].transform("sum")
    return table.assign(share=texts(rows["median"] / whole, "{:.0%}".format))


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
    keys = ["case", "implementation", "name"]
    at = rows.groupby(keys[:2], sort=False).cumcount()
    rows.loc[at >= LISTED, "name"] = "others"
    rows["calls"] = rows.groupby(keys)["calls"].transform("sum")
    rows["median"] = rows.groupby(keys)["median"].transform("sum")
    return rows.drop_duplicates(keys)


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
    if record.get("cache_bytes") and copies.max() > 1:
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
        shown.add_column(
            str(column), justify="right" if at else "left", no_wrap=at < 2, overflow="fold"
        )
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
