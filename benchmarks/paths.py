"""Where records and pictures go."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: The README's.
PICTURES = ROOT / "docs" / "pictures"


def unused(path: Path) -> Path:
    """``path``, or with -2, -3, ... where that exists."""
    target, number = path, 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return target
