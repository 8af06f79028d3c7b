"""The suite's numerical tests once more, with the Triton kernels under Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from packaging.version import Version

triton = pytest.importorskip("triton")
numpy = pytest.importorskip("numpy")
pytest.importorskip("hypothesis")

TESTS = Path(__file__).parent

#: Files, the longest first, and what of them is left out: what is large, and what is about the
#: CPU's kernels. Not whether two runs agree: the interpreter runs one program after another, in
#: their order, so that they cannot differ.
SELECTION = {
    "test_properties.py": "not small_mistakes and not no_less_accurate",
    "test_step.py": "",
    "test_sampled.py": "",
    "test_golden.py": "",
    "test_loss.py": "not ddp",
    "test_gradients.py": "",
    "test_momentum.py": "not compiled",
    "test_partials.py": "",
    "test_random_problems.py": "",
    "test_enqueue.py": "",
    "test_momentum_update.py": "",
    "test_bad_input.py": "not bare_operators",
}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future]]:
    """A future of each selected file's process: one for each core, which the interpreter does not
    leave."""
    files = [
        item.callspec.params["file"]
        for item in request.session.items
        if item.module is request.module
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {file: pool.submit(interpreted, file) for file in files}
        pool.shutdown(cancel_futures=True)


def interpreted(file: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=interpreter"]
    command += ["-p", "no:cacheprovider", "-k", SELECTION[file], str(TESTS / file)]
    return subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"),
    reason="Triton 3.6's interpreter fails on run-time loop bounds with NumPy 2.4",
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves run there")
@pytest.mark.parametrize("file", SELECTION)
def test_interpreted(file, runs):
    done = runs[file].result()
    assert done.returncode == 0, done.stdout + done.stderr
