"""Every instruction set's kernels against float64, whatever this machine would choose."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch

import rrd_kernels  # noqa: F401  (loads the operators)

CPUINFO = Path("/proc/cpuinfo")
#: What Linux says of the processor; elsewhere nothing.
CPU = CPUINFO.read_text() if CPUINFO.exists() else ""


CAPABILITIES = ["baseline", "avx2", "avx512", "avx512_bf16"]


def run_tests(capability, *names):
    """The numerical tests anew, in a process that may not use anything wider."""
    here = Path(__file__).parent
    run = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("hypothesis"):
        names += ("test_random_problems.py",)
        run.append("--hypothesis-profile=quick")
    done = subprocess.run(
        [*run, *(str(here / name) for name in names)],
        # Without a GPU, whose kernels have no part in this.
        env=os.environ | {"RRD_CPU_CAPABILITY": capability, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_instruction_set(capability):
    run_tests(capability, "test_gradients.py", "test_golden.py", "test_contrastive_loss.py")


@pytest.mark.long
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_instruction_set_at_every_size(capability):
    run_tests(capability, "test_properties.py")


@pytest.mark.parametrize("capability", [*CAPABILITIES, "amx"])
def test_nothing_wider_than_the_cap_is_chosen(capability):
    order = ["baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"]
    chosen = [order.index(name) for name in kernels(RRD_CPU_CAPABILITY=capability)]
    machine = [order.index(name) for name in kernels(RRD_CPU_CAPABILITY="")]
    cap = order.index("amx_bf16" if capability == "amx" else capability)
    expected = [min(cap, best) for best in machine]
    if capability == "avx512_bf16" and "avx512_bf16" in CPU:
        expected[2] = cap  # named, it is taken where it is slow too
    assert chosen == expected


@pytest.mark.skipif("avx512_bf16" not in CPU, reason="a processor without AVX512-BF16")
def test_bfloat16_products_where_they_are_fast():
    (*_, chosen) = kernels(RRD_CPU_CAPABILITY="")
    slow = "GenuineIntel" in CPU
    assert chosen in (("avx512", "amx_bf16") if slow else ("avx512_bf16", "amx_bf16"))


def print_kernels():
    print(*torch.ops.rrd_kernels.cpu_kernels())


def kernels(**environment):
    """Those of float64, float32 and bfloat16 products, in a process of this environment."""
    done = forked.run(print_kernels, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_unknown_capability():
    done = forked.run(print_kernels, environment={"RRD_CPU_CAPABILITY": "sse9"})
    assert "ValueError: RRD_CPU_CAPABILITY must be" in done.stderr
    assert "sse9" in done.stderr
