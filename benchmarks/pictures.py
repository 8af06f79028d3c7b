"""A record as pictures: ``python -m benchmarks.pictures RECORD.json``.

Equal records give equal files with one version of matplotlib; each file names its record's digest.
"""

import argparse
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.ceilings import Ceilings

Record = Mapping[str, Any]

DPI = 120
#: What a file's text chunk with the digest is called.
KEY = "Record"

#: What a picture is of, by what its file's name ends with.
TITLES = {
    "scaling": "Time and extra memory of a step against K and against B",
    "roofline": "Rates against operations for each byte, below the machine's ceilings",
    "breakdown": "Operators or kernels that a step consists of",
}


def available(measured: Record) -> list[str]:
    """Which of ``TITLES`` can be drawn of a record."""
    has = {
        "scaling": measured.get("scaling"),
        "roofline": Ceilings.of_record(measured).copy_rate
        and any("gflops" in row for row in measured["rows"]),
        "breakdown": any(one["parts"] for one in measured.get("breakdowns", [])),
    }
    return [name for name in TITLES if has[name]]


def file_name(stem: str, name: str) -> str:
    return f"{stem}-{name}.png"


def draw_all(measured: Record, folder: Path, stem: str) -> list[Path]:
    """Draws all that the record has into ``folder``; files of these names are replaced.

    Args:
        measured: a record.
        folder: where to; made if it is not there.
        stem: what the files' names begin with.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from benchmarks.draw_breakdown import draw_breakdown
    from benchmarks.draw_roofline import draw_roofline
    from benchmarks.draw_scaling import draw_scaling

    draw = {"scaling": draw_scaling, "roofline": draw_roofline, "breakdown": draw_breakdown}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in available(measured):
        paths.append(folder / file_name(stem, name))
        draw[name](measured).savefig(paths[-1], dpi=DPI, metadata={KEY: record.digest(measured)})
    return paths


def texts(picture: Path) -> dict[str, str]:
    """What a PNG file says of itself: the digest of its record, and the software."""
    data = picture.read_bytes()
    at, found = 8, {}
    while at < len(data):  # chunks: length, kind, content, checksum
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"tEXt":
            key, _, value = data[at + 8 : at + 8 + length].partition(b"\0")
            found[key.decode("latin-1")] = value.decode("latin-1")
        at += 12 + length
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("record", type=Path, help="a JSON file that benchmarks.report wrote")
    path: Path = parser.parse_args().record
    try:
        for picture in draw_all(record.load(path), path.parent, path.stem):
            print(picture)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
