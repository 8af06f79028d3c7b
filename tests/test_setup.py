"""setup.py stops with the commands to run, before pip replaces a PyTorch or setuptools raises.

It runs in a process of its own, beside stubs of setuptools and torch. check_dist.py tries pip.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = ROOT / "setup.py"
BUILD = "\n    pip install --no-build-isolation ."


def stub(folder: Path, name: str, version: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}")


def message(
    folder: Path, *, torch: str = "", setuptools: str = "77.0.3", platform: str = "linux"
) -> str:
    """What setup.py ends with, if these versions are on the path; "" is not there."""
    for name, version in (("setuptools", setuptools), ("torch", torch)):
        if version:
            stub(folder, name, version)
    # Its own folder, not the current one, is what a Python that runs a file looks into.
    code = f"import re, subprocess, sys, runpy; sys.platform = {platform!r}; "
    code += f"sys.path.insert(0, {str(folder)!r}); runpy.run_path({str(SETUP)!r})"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.rstrip()


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("version", ["2.10.0+cu128", "2.9.1", "1.13.1"])
def test_an_older_pytorch_is_not_replaced_without_asking(version, platform, tmp_path):
    text = message(tmp_path, torch=version, platform=platform)
    assert f"PyTorch {version} is installed, and rrd_kernels needs 2.11 or newer" in text
    assert "pip would replace it without asking" in text
    assert text.endswith(f"pip install 'torch>=2.11' numpy 'setuptools>=77' ninja{BUILD}")


@pytest.mark.parametrize("version", ["76.1.0", "65.5.0.post1", "9.0"])
def test_an_older_setuptools_is_named(version, tmp_path):
    """First of all, by a command that leaves PyTorch alone."""
    text = message(tmp_path, torch="2.10.0", setuptools=version)
    assert f"setuptools {version} is installed, and rrd_kernels needs 77 or newer" in text
    assert text.endswith(f"    pip install 'setuptools>=77' ninja{BUILD}")


def test_a_build_that_finds_no_pytorch_says_that_it_may_be_hidden(tmp_path, monkeypatch):
    # As in the environment of its own that `python -m build` and uv make.
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", empty], check=True)
    monkeypatch.setattr(sys, "executable", str(empty / "bin" / "python"))
    text = message(tmp_path)
    assert "This build sees no PyTorch. Either none is installed, or pip hides it" in text
    assert text.endswith(f"    pip install torch numpy 'setuptools>=77' ninja{BUILD}")


def test_a_pytorch_that_pip_hides_is_named(tmp_path):
    """-S hides it from setup.py as pip's isolation does, and not from the Python that it asks."""
    version = subprocess.check_output(
        [sys.executable, "-c", "from importlib.metadata import version; print(version('torch'))"],
        text=True,
    ).strip()
    text = message(tmp_path)
    assert f"PyTorch {version} is installed, but this build does not see it" in text
    assert "pip hides the environment's packages" in text
    assert text.endswith(f"    pip install 'setuptools>=77' ninja{BUILD}")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_compiled_and_no_pytorch_needed(platform, tmp_path):
    """In a copy, since a build writes beside what it builds."""
    for name in ("setup.py", "pyproject.toml", "VERSION", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "rrd_kernels").mkdir()
    (tmp_path / "rrd_kernels" / "__init__.py").touch()
    code = "import runpy, setuptools, sys, urllib.request\n"  # the last: for this platform
    code += f"sys.platform, sys.modules['torch'] = {platform!r}, None\n"
    code += "sys.argv = ['setup.py', 'build_py', 'build_ext']\nrunpy.run_path('setup.py')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = [path.name for path in (tmp_path / "build").rglob("*.*") if path.is_file()]
    assert built == ["__init__.py"]


def test_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (setuptools,) = project["build-system"]["requires"]
    (torch,) = (name for name in project["project"]["dependencies"] if name.startswith("torch"))
    text = SETUP.read_text()
    (versions,) = re.findall(r"^OLDEST_SETUPTOOLS, OLDEST_TORCH = (.*)$", text, re.MULTILINE)
    assert versions == f'"{setuptools.partition(">=")[2]}", "{torch.partition(">=")[2]}"'
