"""Every instruction set's kernels against float64, whatever this machine would choose."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rrd_kernels  # noqa: F401  (loads the operators)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_each_instruction_set(capability):
    """The numerical tests anew, in a process that may not use anything wider."""
    here = Path(__file__).parent
    # Without a GPU, whose kernels have no part in this.
    environment = os.environ | {"RRD_CPU_CAPABILITY": capability, "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = ["test_properties.py", "test_gradients.py", "test_golden.py"]
    if importlib.util.find_spec("hypothesis"):
        tests.append("test_random_problems.py")
        run.append("--hypothesis-profile=quick")
    done = subprocess.run(
        [*run, *(str(here / name) for name in tests)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def test_nothing_wider_than_the_cap_is_chosen(capability):
    code = "import rrd_kernels, torch; print(*torch.ops.rrd_kernels.cpu_kernels())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RRD_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
    )
    order = ["baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"]
    chosen = [order.index(name) for name in done.stdout.split()]
    machine = [order.index(name) for name in torch.ops.rrd_kernels.cpu_kernels()]
    cap = order.index("amx_bf16" if capability == "amx" else capability)
    assert chosen == [min(cap, best) for best in machine]


def test_unknown_capability():
    code = "import rrd_kernels, torch; torch.ops.rrd_kernels.cpu_kernels()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RRD_CPU_CAPABILITY": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ValueError: RRD_CPU_CAPABILITY must be" in done.stderr
    assert "sse9" in done.stderr
