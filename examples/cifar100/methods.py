"""The methods of the published table, by its names, as train_student.py takes them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

#: The published weights r, a and b.
METHODS = {
    "student": ("--distill", "none"),
    "KD": ("--distill", "kd", "-r", "0.1", "-a", "0.9"),
    "CRD": ("--distill", "crd"),
    "CRD+KD": ("--distill", "crd", "-a", "1"),
    "RRD 2024": ("--distill", "rrd", "--protocol", "2024"),
    "RRD 2025": ("--distill", "rrd"),
    "RRD+KD 2024": ("--distill", "rrd", "-a", "1", "--protocol", "2024"),
    "RRD+KD 2025": ("--distill", "rrd", "-a", "1"),
}


def method_of(settings: Mapping[str, Any]) -> str | None:
    """Which of them a run with these resolved settings is; None where the weights are others, or
    the memory or CRD's positives are."""
    weights = tuple(settings[name] for name in ("gamma", "alpha", "beta"))
    loss = settings["distill"] if settings["beta"] else None
    if loss == "rrd" and settings["memory_type"] == "fifo":
        kind = {(1, 0, 1): "RRD", (1, 1, 1): "RRD+KD"}.get(weights)
        return kind and f"{kind} {settings['protocol']}"
    if loss == "crd" and settings["mode"] == "exact":
        return {(1, 0, 0.8): "CRD", (1, 1, 0.8): "CRD+KD"}.get(weights)
    return {(1, 0, 0): "student", (0.1, 0.9, 0): "KD"}.get(weights)


def trial_flags(method: str, seed: int) -> list[str]:
    """A run's seed, and a name by which no other method's run has its folder."""
    return ["--seed", str(seed), "--trial", f"{method.replace(' ', '_')}_{seed}"]


def mean_and_deviation(accuracies: Sequence[float]) -> str:
    """Of several seeds, in percent; of one, itself."""
    deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2f}{deviation}"
