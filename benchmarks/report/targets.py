"""What the steps of the relational family and of CRD are meant to reach, and whether a record shows
it."""

from collections.abc import Iterator

import pandas as pd

from benchmarks.cases.sizes import ContrastiveCase, FamilyCase
from benchmarks.implementations.family import Products, SoftLoss
from benchmarks.implementations.fifo import PublishedEager
from benchmarks.implementations.sdpa import CpuFlash
from benchmarks.measuring.run import OURS, STEP

SECTIONS = (FamilyCase.section, ContrastiveCase.section)
#: How many times as long as ours another takes at least, by method, or CRD's case, and
#: implementation.
TIMES = {
    ("MoCo", PublishedEager.name): 3.0,
    ("MoCo", SoftLoss.name): 1 / 0.6,
    ("SEED", PublishedEager.name): 4.0,
    ("ReSSL", PublishedEager.name): 1.8,
    ("ReSSL", Products.name): 0.95,
    ("CRD 64×16384 of 50000", PublishedEager.name): 10.0,
    ("CRD 64×4096 of 1280000", PublishedEager.name): 3.0,
}


def targets_table(rows: pd.DataFrame, section: str) -> pd.DataFrame:
    """A line for each target that rows of :func:`benchmarks.report.tables.frame` have a figure
    for, met or missed."""
    rows = rows[(rows.section == section) & (rows.figure == STEP)]
    columns = [section, "target", "measured", "result"]
    return pd.DataFrame(list(_lines(rows)), columns=columns)


def _lines(rows: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    for row in rows.itertuples(index=False):
        family = row.section == FamilyCase.section
        pair = (row.method if family else row.case, row.implementation)
        least = 1.0 if row.implementation == CpuFlash.name else TIMES.get(pair)
        if least and pd.notna(row.times_ours):
            target = f"{row.implementation} takes at least {least:.2f} times as long"
            yield row.case, target, f"{row.times_ours:.2f}", _result(row.times_ours >= least)
        if row.implementation == OURS and pd.notna(row.extra_bytes):
            most = 16 * row.B * row.D + (4 << 20) if family else 64 << 20  # whatever K is
            target = f"at most {most / 2**20:.1f} MiB of extra memory"
            measured = f"{row.extra_bytes / 2**20:.1f} MiB"
            yield row.case, target, measured, _result(row.extra_bytes <= most)


def _result(met: bool) -> str:
    return "met" if met else "missed"
