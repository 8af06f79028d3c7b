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

#: Files of one process, which take about as long as those of another.
FILES = (
    # All published numbers, and every kernel but those that gather, which are in the second.
    ("golden", "enqueue", "momentum_update", "partials"),
    ("sampled -k against_float64 or low_precision or not_a_row",),
    pytest.param(("sampled", "bad_input"), marks=pytest.mark.long),
    pytest.param(("properties", "loss", "gradients"), marks=pytest.mark.long),
    pytest.param(("step", "momentum", "random_problems"), marks=pytest.mark.long),
)
#: What is large, and what is about the CPU's kernels. Not whether two runs agree: the interpreter
#: runs one program after another, in their order, so that they cannot differ.
LEFT_OUT = ("small_mistakes", "no_less_accurate", "ddp", "compiled", "bare_operators")


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"),
    reason="Triton 3.6's interpreter fails on run-time loop bounds with NumPy 2.4",
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves run there")
@pytest.mark.parametrize("files", FILES, ids=" ".join)
def test_interpreted(files):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=interpreter"]
    command += ["-m", "", "-p", "no:cacheprovider"]
    wanted = [f"not {name}" for name in LEFT_OUT]
    for file in files:
        name, _, selected = file.partition(" -k ")
        command.append(str(TESTS / f"test_{name}.py"))
        wanted += [f"({selected})"] if selected else []
    done = subprocess.run(
        [*command, "-k", " and ".join(wanted)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
