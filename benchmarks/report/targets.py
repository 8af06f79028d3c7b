"""What a step is meant to reach. Without pandas, which a machine that measures may not have."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.cases.sizes import (
    CONTRASTIVE_CASES,
    CUDA_CASES,
    FAMILY_CASES,
    MOMENTUM_CASES,
    Case,
    ContrastiveCase,
    FamilyCase,
)
from benchmarks.implementations.family import Products, SoftLoss
from benchmarks.implementations.fifo import Compiled, PublishedEager
from benchmarks.implementations.sdpa import CpuFlash
from benchmarks.measuring.run import GRAPH, OURS, STEP

MIB = 1 << 20


class Target(NamedTuple):
    """A limit for one column of one row of :func:`benchmarks.report.tables.frame`: the row of
    ``case``, ``implementation`` and ``figure``. With ``beside``, the limit is for the difference
    from the same row of that case."""

    case: str
    column: str
    limit: float
    implementation: str = OURS
    figure: str = STEP
    beside: str | None = None

    @property
    def text(self) -> str:
        where = {GRAPH: "in a graph", STEP: "without a graph"}[self.figure]
        share = f"at least {self.limit:.0%} of torch.mm's rate, {where}"
        if self.beside:
            points = f"at most {-100 * self.limit:.0f} points"
            share = f"share of torch.mm's rate {points} below that of {self.beside}, {where}"
        return {
            "times_ours": f"{self.implementation} takes at least {self.limit:.2f} times as long",
            "extra_bytes": f"at most {self.limit / MIB:.1f} MiB of extra memory",
            "median": f"at most {1e6 * self.limit:.0f} µs {where}",
            "share": share,
        }[self.column]

    def met(self, value: float) -> bool:
        """Times as long and shares have a lower limit, times and memory an upper one."""
        least = self.column in ("times_ours", "share")
        return value >= self.limit if least else value <= self.limit

    def measured(self, value: float) -> str:
        return {
            "times_ours": f"{value:.2f}",
            "extra_bytes": f"{value / MIB:.1f} MiB",
            "median": f"{1e6 * value:.1f} µs",
            "share": f"{100 * value:+.1f} points" if self.beside else f"{value:.1%}",
        }[self.column]


def _slower(case: str, implementation: str, limit: float) -> Target:
    """How many times as long as ours another takes."""
    return Target(case, "times_ours", limit, implementation)


def _memory(case: Case, constant: int = 32 * MIB) -> Target:
    """The batch's vectors and a constant, whatever K is."""
    return Target(case.name, "extra_bytes", 16 * case.batch * case.dim + constant)


def _of_family() -> Iterator[Target]:
    eager, products, soft = PublishedEager.name, Products.name, SoftLoss.name
    slower = {
        "MoCo": {eager: 3.0, soft: 1 / 0.6},
        "SEED": {eager: 4.0},
        "ReSSL": {eager: 1.8, products: 0.95},
    }
    for case in FAMILY_CASES:
        for other, limit in {**slower.get(case.method, {}), CpuFlash.name: 1.0}.items():
            yield _slower(case.name, other, limit)
        yield _memory(case, 4 * MIB)


def _of_crd() -> Iterator[Target]:
    slower = {"CRD 64×16384 of 50000": 10.0, "CRD 64×4096 of 1280000": 3.0}
    for case in CONTRASTIVE_CASES:
        if case.name in slower:
            yield _slower(case.name, PublishedEager.name, slower[case.name])
        yield Target(case.name, "extra_bytes", 64 * MIB)


def _of_gpu() -> Iterator[Target]:
    """Of an H200. The ceiling of the large cases is torch.mm's rate. Their shares of it, and the
    time of the momentum memory, are by the device's clock, in a graph."""
    for size, in_a_graph in (("64×16384", 12e-6), ("256×16384", 20e-6)):
        yield Target(f"bfloat16 {size}", "median", in_a_graph, figure=GRAPH)
        yield Target(f"bfloat16 {size}", "median", 60e-6)
        yield _slower(f"bfloat16 {size}", PublishedEager.name, 5.0)
        yield _slower(f"bfloat16 {size}", Compiled.name, 2.0)
        yield _slower(f"float32 {size}", PublishedEager.name, 1.0)
        yield _slower(f"tf32 {size}", PublishedEager.name, 2.0)
    yield _slower("float32 1024×65536", PublishedEager.name, 1.0)
    # The aim of the larger two is 0.75.
    for size, share in (("1024×65536", 0.5), ("4096×262144", 0.6), ("8192×65536", 0.6)):
        yield Target(f"bfloat16 {size}", "share", share, figure=GRAPH)
    for size in ("bfloat16 1024×65536", "bfloat16 4096×262144"):
        for dim in (64, 256):
            yield Target(f"{size} D={dim}", "share", -0.1, figure=GRAPH, beside=size)
    yield Target(MOMENTUM_CASES[0].name, "median", 100e-6, figure=GRAPH)
    for case in CUDA_CASES:
        yield _memory(case)


#: By the section of a record after which they are listed.
ON_CPUS = {FamilyCase.section: tuple(_of_family()), ContrastiveCase.section: tuple(_of_crd())}
_ORDER = [case.name for case in CUDA_CASES]
ON_GPUS = {Case.section: tuple(sorted(_of_gpu(), key=lambda target: _ORDER.index(target.case)))}
#: Cases with a target beside torch.compile.
BESIDE_COMPILE = {of.case for of in ON_GPUS[Case.section] if of.implementation == Compiled.name}
