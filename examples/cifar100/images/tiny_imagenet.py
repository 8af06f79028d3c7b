"""Tiny-ImageNet's files: found, downloaded, listed."""

import shutil
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets import folder as image_folder
from torchvision.datasets.utils import download_url, extract_archive

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
# Images in the archive's two parts: fewer were not unpacked to the end.
COUNTS = {"train": 100_000, "val": 10_000}


def find(root: Path) -> Path:
    """The set's folder in ``root``, fetched where nothing has its name.

    Raises:
        FileNotFoundError: it is not there or has not both parts, and could not be downloaded.
    """
    folder = root / "tiny-imagenet-200"
    try:
        if not folder.exists():
            _fetch(root, folder)
        reason = ""
    except (OSError, HTTPException, RuntimeError) as error:
        reason = f", and the download failed ({error})"
    if not all((folder / part).is_dir() for part in COUNTS):
        raise FileNotFoundError(
            f"Tiny-ImageNet is not in {folder}{reason}. The folder must hold the images in "
            f"train/<class>/ and val/<class>/. Download {URL} and put it, packed or unpacked, into "
            f"{root}"
        )
    return folder


def _fetch(root: Path, folder: Path) -> None:
    """Downloads the archive, unless it lies there, and unpacks it whole or not at all."""
    archive = root / Path(URL).name
    download_url(URL, root, md5=MD5)
    unpacked = root / ".tiny-imagenet-200"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
    extract_archive(archive, unpacked)
    (unpacked / folder.name).rename(folder)
    unpacked.rmdir()


def samples(folder: Path, train: bool) -> tuple[list[tuple[str, int]], list[str]]:
    """Paths with the numbers of their classes, in the order of an ImageFolder; and the classes,
    which for both parts are the training folders, so that both number them alike.

    Raises:
        ValueError: images are missing.
    """
    part = "train" if train else "val"
    classes, numbers = image_folder.find_classes(folder / "train")
    if (folder / part / "images").is_dir():
        found = _annotated(folder / part, numbers)
    else:
        extensions = image_folder.IMG_EXTENSIONS
        found = image_folder.make_dataset(
            folder / part, numbers, extensions=extensions, allow_empty=True
        )
    if len(found) != COUNTS[part]:
        raise ValueError(
            f"{folder / part} holds {len(found)} images of the {len(classes)} classes of "
            f"{folder / 'train'}, not {COUNTS[part]}. Remove {folder} and unpack {URL} again"
        )
    return found, classes


def _annotated(folder: Path, numbers: dict[str, int]) -> list[tuple[str, int]]:
    """The archive's own val/, one folder for all classes."""
    lines = (folder / "val_annotations.txt").read_text().splitlines()
    labels = {
        name: numbers[label]
        for name, label, *_ in (line.split("\t") for line in lines)
        if label in numbers
    }
    present = (path for path in (folder / "images").iterdir() if path.name in labels)
    found = ((str(path), labels[path.name]) for path in present)
    return sorted(found, key=lambda sample: sample[::-1])
