"""Files that are whole whenever the process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, with the same suffix, whose file takes the place of ``path`` at the end;
    if writing fails, the old file stays."""
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
