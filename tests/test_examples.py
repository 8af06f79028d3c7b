"""The examples run to their end, in settings so small that their figures mean nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_quickstart(tmp_path):
    for package in ("PIL", "matplotlib", "rich", "sklearn"):
        pytest.importorskip(package)
    from PIL import Image

    picture = tmp_path / "folder" / "quickstart.png"
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py", "--quick", "--output", str(picture)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for method in ("student alone", "Hinton KD", "RRD 2025", "RRD 2024", "published eager"):
        assert method in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("This is a tiny data set.")
    assert last.endswith("examples/cifar100/RESULTS.md")
    assert min(Image.open(picture).size) > 300
