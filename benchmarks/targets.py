"""What the fused step is to reach, on an H200 and on a CPU, and whether it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.cases import CUDA_CASES, MOMENTUM_CASES, MomentumCase
from benchmarks.peers import Compiled, Fused, PublishedEager
from benchmarks.run import Result, Row

MIB = 1 << 20

BESIDE_COMPILE = "× torch.compile"

#: Of a row and torch.mm's rate in its format. ``None`` where it was not measured.
FIGURES: Mapping[str, Callable[[Row, float | None], float | None]] = {
    "µs in a CUDA graph": lambda row, mm: 1e6 * row.replay.seconds.median if row.replay else None,
    "µs without a graph": lambda row, mm: 1e6 * row.seconds.median,
    "× published eager": lambda row, mm: row.speedup.get(PublishedEager.name),
    BESIDE_COMPILE: lambda row, mm: row.speedup.get(Compiled.name),
    "share of torch.mm": lambda row, mm: row.rate / mm if row.rate and mm else None,
    "extra MiB": lambda row, mm: None if row.extra_bytes is None else row.extra_bytes / MIB,
}


AT_MOST, AT_LEAST = "at most", "at least"


@dataclass(frozen=True)
class Target:
    """A bound on one figure of one case."""

    case: str
    figure: str
    bound: str
    limit: float
    #: The limit is counted from the same figure of this case.
    relative_to: str | None = None


#: The published size; the other has no limit to its times.
MOMENTUM = MOMENTUM_CASES[0]
MOMENTUM_MEMORY = tuple(Target(case.name, "extra MiB", AT_MOST, 64) for case in MOMENTUM_CASES)

CUDA_TARGETS = (
    Target("bfloat16 64×16384", "µs in a CUDA graph", AT_MOST, 12),
    Target("bfloat16 256×16384", "µs in a CUDA graph", AT_MOST, 20),
    Target("bfloat16 64×16384", "µs without a graph", AT_MOST, 60),
    Target("bfloat16 256×16384", "µs without a graph", AT_MOST, 60),
    Target("bfloat16 64×16384", "× published eager", AT_LEAST, 5),
    Target("bfloat16 256×16384", "× published eager", AT_LEAST, 5),
    Target("bfloat16 64×16384", BESIDE_COMPILE, AT_LEAST, 2),
    Target("bfloat16 256×16384", BESIDE_COMPILE, AT_LEAST, 2),
    Target("float32 64×16384", "× published eager", AT_LEAST, 1),
    Target("float32 256×16384", "× published eager", AT_LEAST, 1),
    Target("float32 1024×65536", "× published eager", AT_LEAST, 1),
    Target("tf32 64×16384", "× published eager", AT_LEAST, 2),
    Target("tf32 256×16384", "× published eager", AT_LEAST, 2),
    Target("bfloat16 1024×65536", "share of torch.mm", AT_LEAST, 0.5),
    # Of these two the aim is 0.75.
    Target("bfloat16 4096×262144", "share of torch.mm", AT_LEAST, 0.6),
    Target("bfloat16 8192×65536", "share of torch.mm", AT_LEAST, 0.6),
    *(
        Target(f"{size} D={dim}", "share of torch.mm", AT_LEAST, -0.1, relative_to=size)
        for size in ("bfloat16 1024×65536", "bfloat16 4096×262144")
        for dim in (64, 256)
    ),
    *(
        Target(case.name, "extra MiB", AT_MOST, 16 * case.batch * case.dim / MIB + 32)
        for case in CUDA_CASES
        if not isinstance(case, MomentumCase)
    ),
    Target(MOMENTUM.name, "µs in a CUDA graph", AT_MOST, 100),
    Target(MOMENTUM.name, "× published eager", AT_LEAST, 8),
    *MOMENTUM_MEMORY,
)

CPU_TARGETS = (
    Target(MOMENTUM.name, "× published eager", AT_LEAST, 10),
    *MOMENTUM_MEMORY,
)


def targets_for(device: torch.device) -> Sequence[Target]:
    return CPU_TARGETS if device.type == "cpu" else CUDA_TARGETS


def beside_compile(device: torch.device) -> set[str]:
    """The cases that have a target beside torch.compile."""
    return {target.case for target in targets_for(device) if target.figure == BESIDE_COMPILE}


@dataclass(frozen=True)
class Outcome:
    """A target, its limit in numbers, and what was measured; ``None`` where nothing was."""

    case: str
    figure: str
    bound: str
    limit: float | None
    measured: float | None

    @property
    def met(self) -> bool:
        if self.limit is None or self.measured is None:
            return False
        if self.bound == AT_MOST:
            return self.measured <= self.limit
        return self.measured >= self.limit


def outcomes(
    results: Sequence[Result], mm_rates: Mapping[str, float], targets: Sequence[Target]
) -> list[Outcome]:
    """Of the targets whose case was run.

    Args:
        results: of one run.
        mm_rates: operations per second of torch.mm by format, in that run.
        targets: of the device that it ran on.
    """
    ours = {row.case.name: row for row in results if row.implementation == Fused.name}

    def measure(case: str, figure: str) -> float | None:
        row = ours.get(case)
        if not isinstance(row, Row):
            return None
        return FIGURES[figure](row, mm_rates.get(row.case.format or ""))

    def outcome(target: Target) -> Outcome:
        limit: float | None = target.limit
        if target.relative_to is not None:
            other = measure(target.relative_to, target.figure)
            limit = None if other is None else other + target.limit
        measured = measure(target.case, target.figure)
        return Outcome(target.case, target.figure, target.bound, limit, measured)

    return [outcome(target) for target in targets if target.case in ours]
