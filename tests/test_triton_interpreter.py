"""The suite's numerical tests once more, with the Triton kernels under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

triton = pytest.importorskip("triton")
numpy = pytest.importorskip("numpy")
pytest.importorskip("hypothesis")

TESTS = Path(__file__).parent

#: Files, and what of them is left out: what is large, and what is about the CPU's kernels.
SELECTION = {
    "test_enqueue.py": "",
    "test_step.py": "",
    "test_gradients.py": "",
    "test_golden.py": "",
    "test_properties.py": "not small_mistakes and not no_less_accurate",
    "test_partials.py": "",
    "test_random_problems.py": "",
    "test_determinism.py": "two_runs",
    "test_loss.py": "not ddp",
    "test_bad_input.py": "not bare_operators",
    "test_sampled.py": "",
    "test_momentum_update.py": "",
    "test_momentum.py": "not compiled",
}


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"),
    reason="Triton 3.6's interpreter fails on run-time loop bounds with NumPy 2.4",
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves run there")
@pytest.mark.parametrize("file", SELECTION)
def test_interpreted(file):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=interpreter"]
    command += ["-p", "no:cacheprovider", "-k", SELECTION[file], str(TESTS / file)]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
