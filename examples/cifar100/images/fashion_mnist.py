"""Fashion-MNIST's files: found, taken from the Debian package, or downloaded."""

import tempfile
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import extract_archive

PACKAGE = "dataset-fashion-mnist"
#: Where that Debian package puts the four official files, packed anew: their md5 sums are others.
INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def find(root: Path, train: bool) -> FashionMNIST:
    """The training or the test images.

    Args:
        root: the folder whose ``FashionMNIST/raw`` holds torchvision's four files. Those that are
            not there are unpacked into it from the Debian package, or downloaded.
        train: training or test images.

    Raises:
        FileNotFoundError: they are not there, and neither way gives them.
        ValueError: a file is damaged.
    """
    raw = root / FashionMNIST.__name__ / "raw"
    if not all((raw / Path(name).stem).exists() for name, _ in FashionMNIST.resources):
        try:
            _fetch(root, raw)
        except (EOFError, OSError, HTTPException, RuntimeError) as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise FileNotFoundError(
                f"Fashion-MNIST is not in {raw}: install the Debian package {PACKAGE}, or download "
                f"its four files to there from {FashionMNIST.mirrors[0]} and unpack them, which "
                f"failed here ({reason})"
            ) from error
    try:
        return FashionMNIST(root, train)
    except Exception as error:  # torchvision asserts, or fails in whatever it does with the bytes
        raise ValueError(f"a file in {raw} is damaged; remove the folder {raw}") from error


def _fetch(root: Path, raw: Path) -> None:
    """Every file is put into place whole, whenever the process ends."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fashion-mnist-") as staging:
        staged = Path(staging) / FashionMNIST.__name__ / "raw"
        staged.mkdir(parents=True)
        for name, _ in FashionMNIST.resources:
            if (INSTALLED / name).exists():
                extract_archive(INSTALLED / name, staged)
        FashionMNIST(staging, download=True)  # nothing where all four are there
        raw.mkdir(parents=True, exist_ok=True)
        for name, _ in FashionMNIST.resources:
            (staged / Path(name).stem).replace(raw / Path(name).stem)
