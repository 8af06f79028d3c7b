"""The methods of the published tables, by their names there, as train_student.py takes them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Published(NamedTuple):
    """A loss of features: its name in the tables, and its weight b."""

    name: str
    b: float


#: By --distill. The weights are those of github.com/HobbitLong/RepDistiller at b84f547, but for
#: RRD's, and for KDSVD's, which is published nowhere. AB and FSP have no part in the second stage,
#: whatever their b.
FEATURES = {
    "hint": Published("FitNet", 100.0),
    "attention": Published("AT", 1000.0),
    "similarity": Published("SP", 3000.0),
    "correlation": Published("CC", 0.02),
    "vid": Published("VID", 1.0),
    "rkd": Published("RKD", 1.0),
    "pkt": Published("PKT", 30000.0),
    "abound": Published("AB", 0.0),
    "factor": Published("FT", 200.0),
    "fsp": Published("FSP", 0.0),
    "nst": Published("NST", 50.0),
    "kdsvd": Published("KDSVD", 1.0),
    "crd": Published("CRD", 0.8),
    "rrd": Published("RRD", 1.0),
}
#: With a first stage of --init_epochs.
TWO_STAGES = ("abound", "factor", "fsp")
#: The published values of flags that only some methods have.
INIT_EPOCHS, HINT_LAYER = 30, 2

#: The published weights r, a and b, of the methods in the published table of RRD.
PUBLISHED_TABLE = {
    "student": ("--distill", "none"),
    "KD": ("--distill", "kd", "-r", "0.1", "-a", "0.9"),
    "CRD": ("--distill", "crd"),
    "CRD+KD": ("--distill", "crd", "-a", "1"),
    "RRD 2024": ("--distill", "rrd", "--protocol", "2024"),
    "RRD 2025": ("--distill", "rrd"),
    "RRD+KD 2024": ("--distill", "rrd", "-a", "1", "--protocol", "2024"),
    "RRD+KD 2025": ("--distill", "rrd", "-a", "1"),
}
#: And of all.
METHODS = PUBLISHED_TABLE | {
    published.name: ("--distill", distill)
    for distill, published in FEATURES.items()
    if distill not in ("crd", "rrd")
}


def method_of(settings: Mapping[str, Any]) -> str | None:
    """Which of them a run with these resolved settings is; None where the weights are others, or
    what else makes the method: the memory, CRD's positives, the hint's layer, the first stage."""
    distill, b = settings["distill"], settings["beta"]
    weights = settings["gamma"], settings["alpha"]
    if distill in FEATURES and (b or distill in TWO_STAGES):
        published = FEATURES[distill]
        as_published = {
            "rrd": settings["memory_type"] == "fifo",
            "crd": settings["mode"] == "exact",
            "hint": settings.get("hint_layer") == HINT_LAYER,
        }.get(distill, settings.get("init_epochs") in (None, INIT_EPOCHS))
        as_published = as_published and settings.get("projection_lr") is None
        if not as_published or (b != published.b and published.b):
            return None
        year = f" {settings['protocol']}" if distill == "rrd" else ""
        name = {(1, 0): published.name, (1, 1): f"{published.name}+KD"}.get(weights)
        found = name and name + year
        return found if found in METHODS else None
    return {(1, 0, 0): "student", (0.1, 0.9, 0): "KD"}.get((*weights, b))


def trial_flags(method: str, seed: int) -> list[str]:
    """A run's seed, and a name by which no other method's run has its folder."""
    return ["--seed", str(seed), "--trial", f"{method.replace(' ', '_')}_{seed}"]


def mean_and_deviation(accuracies: Sequence[float]) -> str:
    """Of several seeds, in percent; of one, itself."""
    deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2f}{deviation}"
