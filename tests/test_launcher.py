"""The launches of csrc/cuda, through a driver that only keeps what it is given.

What is passed is compared with what the compiled code says that it takes, and with the launches as
Python describes them.
"""

import json
from pathlib import Path

import pytest
import stub_driver

pytest.importorskip("triton")


@pytest.mark.skipif(stub_driver.compiler() is None, reason="no C compiler for the stub driver")
def test_what_is_launched(tmp_path):
    done = stub_driver.run_with_stub(Path(__file__).with_name("launcher_case.py"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cuLaunchKernelEx failed with CUDA_ERROR_STUB (700)" in json.loads(done.stdout)["error"]
