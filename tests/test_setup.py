"""setup.py stops with the commands to run, before pip replaces a PyTorch or setuptools raises.

It runs in a process of its own, beside stubs of setuptools and torch. check_dist.py tries pip.
"""

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rrd_kernels import extension

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


#: Prints what setup.py hands to setuptools, instead of a build.
SHOW = """
import json, runpy, setuptools, sys
import torch.utils.cpp_extension
def show(ext_modules=(), **_):
    names = ("name", "include_dirs", "library_dirs", "extra_compile_args", "extra_link_args")
    print(json.dumps([{name: getattr(module, name) for name in names} for module in ext_modules]))
setuptools.setup = show
sys.platform = sys.argv.pop(1)
runpy.run_path(sys.argv.pop(1))
"""


def modules(platform: str = "linux", **variables: str) -> list[dict[str, Any]]:
    """The extensions that setup.py would build."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RRD_")}
    text = subprocess.check_output(
        [sys.executable, "-c", SHOW, platform, SETUP], env=inherited | variables, text=True
    )
    return json.loads(text)


def compiler(folder: Path, *, refuses: str = "-nothing", defines: str = "") -> str:
    """A g++ that refuses a flag, and defines a macro."""
    path = folder / "compiler"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *{refuses}*) exit 1;; esac\nexec g++ {defines} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@needs_compiler
def test_flags_are_those_that_the_compiler_takes(tmp_path):
    (module,) = modules(CXX=compiler(tmp_path))
    flags = module["extra_compile_args"]["cxx"]
    assert module["name"] == "rrd_kernels._C"
    assert {"-fopenmp", "-Wno-maybe-uninitialized"} <= set(flags)
    refused = modules(CXX=compiler(tmp_path, refuses="-Wno-maybe-uninitialized"))
    assert refused[0]["extra_compile_args"]["cxx"] == [
        flag for flag in flags if flag != "-Wno-maybe-uninitialized"
    ]
    # Clang's OpenMP is another runtime than PyTorch's.
    clang = modules(CXX=compiler(tmp_path, defines="-D__clang__"))
    assert clang[0]["extra_compile_args"]["cxx"] == [flag for flag in flags if flag != "-fopenmp"]


def test_elsewhere_a_build_is_tried_only_if_it_is_asked_for():
    assert modules("win32") == []
    (module,) = modules("win32", RRD_BUILD="1")
    flags = module["extra_compile_args"]["cxx"]
    assert "/std:c++20" in flags
    assert not [flag for flag in flags if flag.startswith("-")]


@needs_compiler
def test_a_wheel_has_an_extension_for_each_pytorch(tmp_path):
    folders = []
    for version in ("2.11.0+cu126", "2.15.1"):
        folders.append(tmp_path / version)
        folders[-1].mkdir()
        (folders[-1] / "version.py").write_text(f"__version__ = {version!r}")
    found = modules(RRD_TORCHES=os.pathsep.join(map(str, folders)))
    names = [module["name"] for module in found]
    assert names == ["rrd_kernels._C_torch_2_11", "rrd_kernels._C_torch_2_15"]
    for module, folder in zip(found, folders, strict=True):
        assert module["library_dirs"] == [str(folder / "lib")]
        _, *others = module["include_dirs"]  # after csrc/, none of the PyTorch that builds
        assert others
        assert all(Path(path).is_relative_to(folder / "include") for path in others)
        assert module["extra_link_args"] == ["-s"]


def test_the_wheel_is_for_the_versions_that_the_readme_names():
    names = runpy.run_path(str(ROOT / "release" / "make_wheel.py"))
    minors = [".".join(map(str, names["minor"](version))) for version in names["TORCHES"]]
    assert f"PyTorch {minors[0]} to {minors[-1]}" in (ROOT / "README.md").read_text()
    text = SETUP.read_text()
    assert re.search(rf'OLDEST_TORCH = .*"{minors[0]}"$', text, re.MULTILINE)
    assert f"\ntorch=={minors[-1]}." in (ROOT / "constraints.txt").read_text()
    numbers = [int(minor.partition(".")[2]) for minor in minors]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_the_changelog_begins_with_this_version():
    """After what is not released yet, and the README names its wheel."""
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = (ROOT / "VERSION").read_text().strip()
    assert next(heading for heading in headings if heading != "Unreleased") == version
    for name in ("README.md", "docs/other-packages.md"):
        assert f"rrd_kernels-{version}-cp311-abi3-manylinux" in (ROOT / name).read_text()


#: Beyond glibc 2.28, as one that is built here has it.
NEWER_SYMBOLS = {"exp2", "log", "log2", "__libc_single_threaded"}
NEEDS_EACH = """
#include <cmath>
#include <memory>
double each(double x) { return std::exp2(x) + std::log(x) + std::log2(x); }
std::shared_ptr<double> copied(const std::shared_ptr<double>& x) { return x; }
"""


def newer_than_2_28(library: Path) -> set[str]:
    text = subprocess.check_output(["objdump", "-T", library], text=True)
    found = re.findall(r"\*UND\*.*\(GLIBC_2\.(\d+)[.\d]*\)\s+(\S+)", text)
    assert found
    return {name for minor, name in found if int(minor) > 28}


@needs_compiler
@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver() > ("glibc", "2.36"),
    reason="the wheel is built with glibc 2.36 on x86-64",
)
def test_the_wheel_needs_no_newer_glibc_than_pytorch(tmp_path):
    (tmp_path / "each.cpp").write_text(NEEDS_EACH)
    build = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", tmp_path / "each.cpp"]
    header = ["-include", ROOT / "release" / "glibc_2_28.h"]
    subprocess.run([*build, "-o", tmp_path / "plain.so"], check=True)
    subprocess.run([*build, *header, "-o", tmp_path / "bound.so"], check=True)
    assert newer_than_2_28(tmp_path / "bound.so") == set()
    assert newer_than_2_28(tmp_path / "plain.so") <= NEWER_SYMBOLS
    # And the extension has no others, for which the header would need a line.
    assert newer_than_2_28(extension.LIBRARY) <= NEWER_SYMBOLS


def test_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (setuptools,) = project["build-system"]["requires"]
    (torch,) = (name for name in project["project"]["dependencies"] if name.startswith("torch"))
    text = SETUP.read_text()
    (versions,) = re.findall(r"^OLDEST_SETUPTOOLS, OLDEST_TORCH = (.*)$", text, re.MULTILINE)
    assert versions == f'"{setuptools.partition(">=")[2]}", "{torch.partition(">=")[2]}"'
