"""Many of the suite's numerical tests once more, with the compiled GPU kernels executed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("hypothesis")

TESTS = Path(__file__).parent

#: Files of one process, and the card. What test_ptx_fifo.py and test_ptx_momentum.py do with other
#: data is left out here.
FILES = [
    ("sm_90", "golden", "enqueue", "momentum_update"),  # all published numbers
    *(
        pytest.param(files, marks=pytest.mark.long)
        for files in (
            ("sm_80", "golden", "gradients"),
            ("sm_90", "step", "momentum", "loss"),
            (
                "sm_80",
                "properties -k tf32 or tiny or digits or edge or broken or beyond",
                "partials",
            ),
            ("sm_90", "random_problems", "momentum_loss -k not against and not low_precision"),
            ("sm_80", "contrastive_loss -k not against and not low_precision"),
        )
    ),
]
#: What is large, what is about the CPU's kernels, and what is about names in a state.
LEFT_OUT = ("small_mistakes", "no_less_accurate", "ddp", "compiled", "bare_operators", "wrapped")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves run there")
@pytest.mark.parametrize("files", FILES, ids=" ".join)
def test_emulated(files):
    arch, *files = files
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=emulated"]
    command += ["-m", "", "-p", "no:cacheprovider"]
    for file in files:
        name, _, selected = file.partition(" -k ")
        wanted = [f"not {name}" for name in LEFT_OUT] + ([f"({selected})"] if selected else [])
        done = subprocess.run(
            [*command, str(TESTS / f"test_{name}.py"), "-k", " and ".join(wanted)],
            env=os.environ | {"RRD_EMULATED": arch, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
