"""Where records and pictures go."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: The README's.
PICTURES = ROOT / "docs" / "pictures"


def place(path: Path) -> str:
    """Where a file lies in the repository, by which documents name it.

    Raises:
        ValueError: it lies elsewhere.
    """
    if not path.is_relative_to(ROOT):
        raise ValueError(
            f"{path} is outside the repository: documents name a record by its place there"
        )
    return path.relative_to(ROOT).as_posix()


def unused(path: Path, *endings: str) -> Path:
    """``path``, or with -2, -3, ... where that exists, or a file beside it that has one of
    ``endings`` in place of its suffix."""
    target, number = path, 1
    while any(target.with_name(target.stem + end).exists() for end in (path.suffix, *endings)):
        number += 1
        target = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return target


def new_record(path: Path, *endings: str) -> Path:
    """:func:`unused` of the name of a JSON file, which is tried out: folders are made.

    Raises:
        ValueError: it is another name, or a folder's.
        OSError: no file can be written there.
    """
    if path.suffix != ".json":
        raise ValueError(f"{path} does not end in .json")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = unused(path, *endings)
    new.touch(exist_ok=False)
    new.unlink()
    return new


def write_whole(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, in place of one that is there; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    new.replace(path)
