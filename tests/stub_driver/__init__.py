"""A stand-in for the CUDA driver, and processes that find it in the driver's place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("libcuda.c")


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def in_place() -> bool:
    """Whether this process was started by ``run_with_stub``."""
    return "RRD_TEST_STUB_DRIVER" in os.environ


def run_with_stub(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``script`` in a Python whose libcuda.so.1 is the stub, built in ``folder``."""
    library = folder / "libcuda.so.1"
    subprocess.run([str(compiler()), "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "RRD_TEST_STUB_DRIVER": "1",
    }
    command = [sys.executable, script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
