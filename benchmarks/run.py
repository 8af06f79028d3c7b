"""One case, from agreement to figures."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.agreement import Errors, check_agreement
from benchmarks.cases import Case, Embeddings, draw
from benchmarks.isolated import isolated_peak_memory
from benchmarks.measure import Spread, interleaved_times
from benchmarks.peers import Step, implementations


@dataclass(frozen=True)
class Row:
    """One implementation on one case."""

    case: Case
    implementation: str
    seconds: Spread
    rounds: int
    #: How many times faster than each implementation: the median over the rounds.
    speedup: Mapping[str, float]
    #: ``None`` where it was not measured.
    extra_bytes: int | None
    errors: Errors

    @property
    def rate(self) -> float:
        """Operations per second, counted alike for all implementations."""
        return self.case.operations / self.seconds.median


def run_case(
    case: Case, seconds: float, device: torch.device | str = "cpu", memory: bool = True
) -> list[Row]:
    """Checks, then times, every implementation that runs on ``device``.

    Args:
        case: the size.
        seconds: how long to time, all implementations together; at least seven rounds.
        device: where the tensors are.
        memory: whether to measure peak memory too, which takes a new process for each.

    Raises:
        ArithmeticError: an implementation disagrees with the reference; nothing is timed then.
    """
    device = torch.device(device)
    slots, batches = draw(case, device)
    kinds = implementations(device)
    steps = [kind(slots, case.tau_s, case.tau_t) for kind in kinds]
    errors = check_agreement(case, steps, slots, batches[0])
    times = interleaved_times(
        {step.name: _over_batches(step, batches) for step in steps}, device, seconds
    )
    count_memory = memory and device.type == "cpu"
    return [
        Row(
            case=case,
            implementation=kind.name,
            seconds=Spread.of(times[kind.name]),
            rounds=len(times[kind.name]),
            speedup={peer: _median_ratio(taken, times[kind.name]) for peer, taken in times.items()},
            extra_bytes=isolated_peak_memory(case, kind) if count_memory else None,
            errors=errors[kind.name],
        )
        for kind in kinds
    ]


def _over_batches(step: Step, batches: Sequence[Embeddings]) -> Callable[[], object]:
    """Each call takes the next batch, so that none is in cache because it was just there."""
    following = itertools.cycle(batches)
    return lambda: step(*next(following))


def _median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
