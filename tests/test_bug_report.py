"""``python -m rrd_kernels``: what a bug report needs, whatever is missing or broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_import import copy_without_extension

import rrd_kernels

TESTS = Path(__file__).parent
NAMES = [
    *("rrd_kernels", "python", "platform", "processor", "torch", "triton", "extension"),
    *("extensions, by PyTorch", "CPU kernels", "threads", "RRD_CPU_CAPABILITY", "packs"),
    *("GPUs", "step on cpu"),
]
NO_TRITON = "import runpy, sys; sys.modules['triton'] = None"


def report(*command: str, folder: Path | None = None, **variables: str) -> dict[str, str]:
    """Values by name, in the order in which they were printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RRD_")}
    # Without a GPU of this machine's, so that the names are the same on all.
    environment = inherited | {"CUDA_VISIBLE_DEVICES": ""} | variables
    done = subprocess.run(
        [sys.executable, *(command or ("-m", "rrd_kernels"))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning" not in done.stderr
    return dict(line.split(": ", maxsplit=1) for line in done.stdout.splitlines())


def losses(step: str) -> set[str]:
    return {word.strip(",)") for word in step.split() if word[0].isdigit()}


def test_all_is_told():
    values = report()
    assert list(values) == NAMES
    assert values["rrd_kernels"].startswith(f"{rrd_kernels.__version__}, ")
    assert values["torch"].startswith(f"{torch.__version__}, built with ")
    built = torch.ops.rrd_kernels.torch_version()
    assert values["extension"].endswith(f"_C.abi3.so, built against PyTorch {built}, loaded")
    assert values["extensions, by PyTorch"] == "one built from source"
    assert values["RRD_CPU_CAPABILITY"] == "not set, so the best is chosen"
    assert values["step on cpu"].startswith("fused, loss ")
    assert len(losses(values["step on cpu"])) == 1  # the reference's is the same
    assert "failed" not in " ".join(values.values())


def test_what_fails_is_told_with_its_error_and_the_rest_too():
    values = report(RRD_CPU_CAPABILITY="mmx")
    assert list(values) == NAMES
    for name in ("CPU kernels", "step on cpu"):
        assert values[name].startswith("failed: ValueError: RRD_CPU_CAPABILITY must be baseline")


def test_variables_and_what_they_choose(tmp_path):
    for arch, manifest in {
        "sm_80": {"format": 1, "arch": "sm_80", "triton": "3.6.0", "sources": {}, "kernels": {}},
        "sm_90": {},
    }.items():
        (tmp_path / arch).mkdir()
        (tmp_path / arch / "manifest.json").write_text(json.dumps(manifest))
    values = report(RRD_KERNELS=str(tmp_path), RRD_CPU_CAPABILITY="baseline")
    assert values["RRD_CPU_CAPABILITY"] == "baseline"
    assert values["CPU kernels"] == "float64 baseline, float32 baseline, bfloat16 baseline"
    assert values["RRD_KERNELS"] == str(tmp_path)
    assert values["packs"] == f"2 of GPU kernels compiled ahead, in {tmp_path}"
    assert values["pack sm_80"] == "0 kernels, compiled by Triton 3.6.0"
    assert values["pack sm_90"].startswith("failed: PackError: rrd_kernels: the pack ")


@pytest.mark.parametrize(
    ("library", "reason"), [(None, "has not been built"), (b"no library", "_C.abi3.so")]
)
def test_without_the_extension(library, reason, tmp_path):
    package = copy_without_extension(tmp_path) / "rrd_kernels"
    if library is not None:
        (package / "_C.abi3.so").write_bytes(library)
    values = report(folder=tmp_path)
    assert list(values) == NAMES
    assert values["rrd_kernels"].endswith(f", {package}")
    assert "not used: " in values["extension"]
    assert reason in values["extension"]
    assert values["CPU kernels"] == "none without the extension"
    assert values["step on cpu"].startswith("reference, loss ")
    assert reason in values["step on cpu"]


def test_a_wheel_that_does_not_know_this_pytorch(tmp_path):
    """Said by the report alone, not by a warning beside it."""
    package = copy_without_extension(tmp_path) / "rrd_kernels"
    for version in ("1_8", "1_13"):
        (package / f"_C_torch_{version}.abi3.so").touch()
    values = report(folder=tmp_path)
    assert values["extensions, by PyTorch"] == "1.8, 1.13"
    assert values["extension"].startswith("not used: this wheel has it for PyTorch 1.8 to 1.13")


def test_a_gpu():
    """The stand-in, an H200."""
    values = report(str(TESTS / "on_stand_in.py"), "-m", "rrd_kernels")
    assert values["GPUs"] == "1"
    assert values["GPU 0"] == "Stand-in, compute capability 9.0, block sizes of sm_90"
    assert values["step on cuda:0"].startswith("fused, loss ")


def test_without_triton():
    values = report("-c", f"{NO_TRITON}; runpy.run_module('rrd_kernels', run_name='__main__')")
    assert values["triton"] == "not installed"
    assert values["step on cpu"].startswith("fused, loss ")


def test_a_gpu_without_triton():
    start = "import on_stand_in; sys.argv[1:] = ['-m', 'rrd_kernels']; on_stand_in.main()"
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    values = report("-c", f"{NO_TRITON}; {start}", PYTHONPATH=path)
    reason = "Triton is not installed, and there is no pack of kernels compiled ahead of time"
    assert values["GPU 0"] == f"Stand-in, compute capability 9.0, reference: {reason}"
    step = values["step on cuda:0"]
    assert step.startswith("reference, loss ")
    assert step.endswith(f": {reason}")


def test_the_form_and_the_guide_ask_for_it():
    for name in (".github/ISSUE_TEMPLATE/bug.yml", "CONTRIBUTING.md"):
        assert "python -m rrd_kernels" in (TESTS.parent / name).read_text()
