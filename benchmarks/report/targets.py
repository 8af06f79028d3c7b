"""What the fused step is to reach, on an H200 and on a CPU, and whether a record does."""

from typing import NamedTuple

import torch

from benchmarks.cases.sizes import CUDA_CASES, MOMENTUM_CASES, MomentumCase
from benchmarks.implementations.fifo import Compiled, Fused, PublishedEager
from benchmarks.measuring.parts import STEP
from benchmarks.measuring.run import GRAPH
from benchmarks.report.record import Record

IN_GRAPH, ALONE = "µs in a CUDA graph", "µs without a graph"
BESIDE_PUBLISHED, BESIDE_COMPILE = "× published eager", "× torch.compile"
SHARE, MEMORY = "share of torch.mm", "extra MiB"
#: Of a figure: the row's figure and implementation, its column, and the column's unit.
FIGURES = {
    IN_GRAPH: (GRAPH, Fused.name, "median", 1e6),
    ALONE: (STEP, Fused.name, "median", 1e6),
    BESIDE_PUBLISHED: (STEP, PublishedEager.name, "times_ours", 1),
    BESIDE_COMPILE: (STEP, Compiled.name, "times_ours", 1),
    MEMORY: (STEP, Fused.name, "extra_bytes", 1 / 2**20),
}
AT_LEAST = (BESIDE_PUBLISHED, BESIDE_COMPILE, SHARE)


class Target(NamedTuple):
    """A bound on one figure of one case, the lower one of ``AT_LEAST`` and the upper one of others;
    of ``relative_to`` counted from the same figure of that case."""

    case: str
    figure: str
    limit: float
    relative_to: str | None = None


SMALL = ("64×16384", "256×16384")
LARGE = ("bfloat16 1024×65536", "bfloat16 4096×262144")
MOMENTUM = MOMENTUM_CASES[0].name
MOMENTUM_MEMORY = [Target(case.name, MEMORY, 64) for case in MOMENTUM_CASES]
CUDA_TARGETS = [
    Target("bfloat16 64×16384", IN_GRAPH, 12),
    Target("bfloat16 256×16384", IN_GRAPH, 20),
    *(
        Target(f"{kind} {size}", figure, limit)
        for kind, figure, limit in (
            ("bfloat16", ALONE, 60),
            ("bfloat16", BESIDE_PUBLISHED, 5),
            ("bfloat16", BESIDE_COMPILE, 2),
            ("float32", BESIDE_PUBLISHED, 1),
            ("tf32", BESIDE_PUBLISHED, 2),
        )
        for size in SMALL
    ),
    Target("float32 1024×65536", BESIDE_PUBLISHED, 1),
    Target(LARGE[0], SHARE, 0.5),
    # Of these two the aim is 0.75.
    Target(LARGE[1], SHARE, 0.6),
    Target("bfloat16 8192×65536", SHARE, 0.6),
    *(Target(f"{size} D={dim}", SHARE, -0.1, size) for size in LARGE for dim in (64, 256)),
    *(
        Target(case.name, MEMORY, 16 * case.batch * case.dim / 2**20 + 32)
        for case in CUDA_CASES
        if not isinstance(case, MomentumCase)
    ),
    Target(MOMENTUM, IN_GRAPH, 100),
    Target(MOMENTUM, BESIDE_PUBLISHED, 8),
    *MOMENTUM_MEMORY,
]
CPU_TARGETS = [Target(MOMENTUM, BESIDE_PUBLISHED, 10), *MOMENTUM_MEMORY]


def beside_compile(device: torch.device) -> set[str]:
    """The cases that have a target beside torch.compile."""
    targets = CPU_TARGETS if device.type == "cpu" else CUDA_TARGETS
    return {target.case for target in targets if target.figure == BESIDE_COMPILE}


def targets_lines(record: Record) -> list[dict[str, str]]:
    """Of the targets whose case was run; not met also where nothing was measured."""
    from benchmarks.report.tables import frame, rates, three_digits  # needs pandas

    rows = frame(record)
    rows["share of mm"] = rows.rate / rows.format.map(rates(record)[0])

    def found(case: str, figure: str, implementation: str, column: str) -> float:
        own = rows[(rows.case == case) & (rows.implementation == implementation)]
        return float(own.loc[own.figure == figure, column].max())

    def measured(case: str, figure: str) -> float:
        if figure == SHARE:  # by the device's clock where there is a graph
            return max(found(case, which, Fused.name, "share of mm") for which in (GRAPH, STEP))
        which, implementation, column, scale = FIGURES[figure]
        return scale * found(case, which, implementation, column)

    lines = []
    for case, figure, limit, relative_to in CUDA_TARGETS if "gpu" in record else CPU_TARGETS:
        if case in set(rows.case):
            value = measured(case, figure)
            limit += measured(relative_to, figure) if relative_to else 0
            least = figure in AT_LEAST
            met = value >= limit if least else value <= limit
            lines.append(
                {
                    "case": case,
                    "target": f"at {'least' if least else 'most'} {three_digits(limit)} {figure}",
                    "measured": three_digits(value),
                    "met?": "yes" if met else "no",
                }
            )
    return lines
