"""What importing does and does not do, and the package without its extension."""

import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rrd_kernels

PACKAGE = Path(rrd_kernels.__file__).parent
STAND_INS = Path(__file__).with_name("stand_in_triton.py")


def run(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_import_touches_no_gpu_and_nothing_slow():
    done = run(
        "import torch; before = set(__import__('sys').modules)\n"
        "import rrd_kernels\n"
        "new = {m.split('.')[0] for m in set(__import__('sys').modules) - before}\n"
        "assert not new & {'triton', 'torchvision', 'numpy', 'matplotlib'}, new\n"
        "assert 'torch.distributed.tensor' not in __import__('sys').modules\n"
        "assert not torch.cuda.is_initialized()"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def copy_without_extension(folder: Path) -> Path:
    shutil.copytree(
        PACKAGE, folder / "rrd_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    return folder


TRAIN = """
import os
import torch
from rrd_kernels import RRDLoss, extension
from rrd_kernels.functional import relational_loss
assert os.path.samefile(os.path.dirname(extension.__file__), 'rrd_kernels'), 'not the copy'
criterion = RRDLoss(s_dim=6, t_dim=5, feat_dim=8, nce_k=16)
f_s = torch.randn(10, 6, requires_grad=True)
for _ in range(3):
    criterion(f_s, torch.randn(10, 5)).backward()
assert f_s.grad.norm() > 0 and criterion.memory.queue_ptr.item() == 30 % 16
try:
    relational_loss(f_s, f_s, f_s, backend='fused')
except RuntimeError as error:
    print(error)
"""


def test_without_the_extension_elsewhere_the_warning_gives_no_vain_advice(tmp_path):
    code = "import sys, torch; sys.platform = 'darwin'; import rrd_kernels"
    done = run(code, copy_without_extension(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "it is built on Linux only, not on darwin" in done.stderr
    assert "install" not in done.stderr


def test_without_the_extension_it_trains_on_the_reference_and_says_so_once(tmp_path):
    done = run(TRAIN, copy_without_extension(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("runs on its plain PyTorch reference") == 1
    assert "has not been built" in done.stderr
    assert "has not been built" in done.stdout


def test_an_extension_that_does_not_load_is_named(tmp_path):
    (copy_without_extension(tmp_path) / "rrd_kernels" / "_C.abi3.so").write_bytes(b"no library")
    done = run(TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("runs on its plain PyTorch reference") == 1
    assert "_C.abi3.so" in done.stderr


def test_installed_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()


def test_a_stand_in_for_triton_is_not_taken_for_it(tmp_path):
    """Test suites and CPU images have such, so that what imports Triton can be imported."""
    pytest.importorskip("triton")
    done = run(f"import runpy; runpy.run_path({str(STAND_INS)!r}, run_name='__main__')", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", done.stdout + done.stderr
    assert done.stderr == ""


def test_a_benchmark_beside_a_stand_in_leaves_the_library_out(monkeypatch):
    libraries = pytest.importorskip("benchmarks.implementations.libraries")
    for kind in (libraries.LigerJSD, libraries.FlaKLDiv):
        monkeypatch.setitem(
            sys.modules, kind.module.partition(".")[0], types.ModuleType("stand-in")
        )
        assert not kind.takes(None)
