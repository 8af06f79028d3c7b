"""What a step is meant to reach. Without pandas, which a machine that measures may not have."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.cases.sizes import (
    CONTRASTIVE_CASES,
    CUDA_CASES,
    FAMILY_CASES,
    MOMENTUM_CASES,
    Case,
)
from benchmarks.implementations.family import Products, SoftLoss
from benchmarks.implementations.fifo import Compiled, PublishedEager
from benchmarks.implementations.sdpa import CpuFlash
from benchmarks.measuring.run import GRAPH, OURS, STEP

MIB = 1 << 20
#: Columns with a lower limit; the others' is an upper one.
AT_LEAST = ("times_ours", "share")


class Target(NamedTuple):
    """A limit for one column of a case's row of :func:`benchmarks.report.tables.frame`; counted
    from that of the case ``beside``, if any."""

    case: str
    column: str
    limit: float
    implementation: str = OURS
    figure: str = STEP
    beside: str | None = None

    @property
    def text(self) -> str:
        where = {GRAPH: " in a graph", STEP: " without a graph"}[self.figure]
        share = f"at least {self.limit:.0%} of torch.mm's rate{where}"
        if self.beside:
            share = f"at most {-self.limit:.0%} of torch.mm's rate{where} below {self.beside}"
        return {
            "times_ours": f"{self.implementation} takes at least {self.limit:.2f} times as long",
            "extra_bytes": f"at most {self.limit / MIB:.1f} MiB of extra memory",
            "median": f"at most {1e6 * self.limit:.0f} µs{where}",
            "share": share,
        }[self.column]

    def value(self, value: float) -> str:
        return {
            "times_ours": f"{value:.2f}",
            "extra_bytes": f"{value / MIB:.1f} MiB",
            "median": f"{1e6 * value:.1f} µs",
            "share": f"{value:.1%}",
        }[self.column]


def _slower(case: str, implementation: str, limit: float) -> Target:
    """How many times as long as ours another takes."""
    return Target(case, "times_ours", limit, implementation)


def _memory(case: Case, constant: int = 32 * MIB) -> Target:
    """Of vectors of the batch, whatever K is."""
    return Target(case.name, "extra_bytes", 16 * case.batch * case.dim + constant)


#: Of other methods and of CRD, by method and case.
SLOWER = {
    "MoCo": {PublishedEager.name: 3.0, SoftLoss.name: 1 / 0.6},
    "SEED": {PublishedEager.name: 4.0},
    "ReSSL": {PublishedEager.name: 1.8, Products.name: 0.95},
    "CRD 64×16384 of 50000": {PublishedEager.name: 10.0},
    "CRD 64×4096 of 1280000": {PublishedEager.name: 3.0},
}


def _on_cpus() -> Iterator[Target]:
    for case in FAMILY_CASES:
        for other, limit in {**SLOWER.get(case.method, {}), CpuFlash.name: 1.0}.items():
            yield _slower(case.name, other, limit)
        yield _memory(case, 4 * MIB)
    for drawn in CONTRASTIVE_CASES:
        for other, limit in SLOWER.get(drawn.name, {}).items():
            yield _slower(drawn.name, other, limit)
        yield Target(drawn.name, "extra_bytes", 64 * MIB)


def _on_gpus() -> Iterator[Target]:
    """An H200's."""
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


ON_CPUS, ON_GPUS = tuple(_on_cpus()), tuple(_on_gpus())
#: Where torch.compile has a target beside it.
BESIDE_COMPILE = {target.case for target in ON_GPUS if target.implementation == Compiled.name}
