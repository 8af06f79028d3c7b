"""Which of several libraries is taken: the one that was built for the PyTorch that runs."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from rrd_kernels import extension, loading

WHEEL = ("_C_torch_2_9.abi3.so", "_C_torch_2_11.abi3.so", "_C_torch_2_15.abi3.so")


class LoadedError(Exception):
    """Which library, instead of its code."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    def load_library(path):
        raise LoadedError(path.name)

    ops = types.SimpleNamespace(load_library=load_library)
    monkeypatch.setattr(loading, "FOLDER", tmp_path)
    monkeypatch.setattr(
        loading, "torch", types.SimpleNamespace(ops=ops, __version__=torch.__version__)
    )
    return tmp_path


def taken(folder: Path, files: tuple[str, ...], version: str) -> str:
    """What is loaded, or why nothing is."""
    for name in files:
        (folder / name).touch()
    loading.torch.__version__ = version
    try:
        path, error = loading.load()
    except LoadedError as library:
        return str(library)
    assert path is None
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("2.11.0", WHEEL[1]),
        ("2.11.1+cpu", WHEEL[1]),
        ("2.15.0a0+gitd0f2af8", WHEEL[2]),
        ("2.9.1", WHEEL[0]),
    ],
)
def test_each_version_takes_its_own(version, name, folder):
    assert taken(folder, WHEEL, version) == name


NEWER = "install a newer wheel, or in a clone run pip install --no-build-isolation ."


@pytest.mark.parametrize(
    ("version", "advice"),
    [("2.16.0+cu140", NEWER), ("3.0.0", NEWER), ("2.8.0", "upgrade PyTorch")],
)
def test_a_version_that_the_wheel_does_not_know_is_told_what_to_do(version, advice, folder):
    error = taken(folder, WHEEL, version)
    assert "\n" not in error
    assert error == f"this wheel has it for PyTorch 2.9 to 2.15, not for {version}: {advice}"


def test_one_that_was_built_from_source_serves_where_the_wheel_has_none(folder):
    files = (*WHEEL, "_C.abi3.so", "_C.cpython-311-x86_64-linux-gnu.so")  # the second is older
    assert taken(folder, files, "2.16.0") == "_C.abi3.so"  # load() then asks it for its version
    assert taken(folder, files, "2.15.0") == "_C_torch_2_15.abi3.so"


@pytest.mark.parametrize("name", ["_C.abi3.so", "_C.pyd", "_C.cp311-win_amd64.pyd", "_C.dylib"])
def test_the_names_of_other_platforms_are_looked_for(name, folder, monkeypatch):
    monkeypatch.setattr(sys, "platform", "anything")
    assert taken(folder, (name, "_C.txt"), "2.15.0") == name
    assert loading.libraries() == {"": folder / name}


def test_the_versions_are_in_order(folder):
    for name in WHEEL:
        (folder / name).touch()
    assert list(loading.libraries()) == ["2.9", "2.11", "2.15"]


def test_without_any_it_says_how_to_get_one(folder, monkeypatch):
    assert taken(folder, (), "2.15.0") == f"it has not been built in {folder}; " + (
        "install the package again"
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    assert taken(folder, (), "2.15.0") == (
        "it is built on Linux only, not on darwin, unless RRD_BUILD=1 asks for it"
    )


def test_a_library_of_another_pytorch_is_refused(monkeypatch):
    """The one that is loaded here, as if PyTorch had been upgraded since."""
    newer = types.SimpleNamespace(ops=torch.ops, __version__="2.99.0")
    monkeypatch.setattr(loading, "torch", newer)
    path, error = loading.load()
    assert path == extension.LIBRARY
    built = torch.ops.rrd_kernels.torch_version()
    assert error == (
        f"it was built against PyTorch {built}, but this is PyTorch 2.99.0; "
        f"install the package again"
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [("_C.abi3.so", "install the package again"), ("_C_torch_{}_{}.abi3.so", NEWER)],
)
def test_a_library_that_does_not_load_says_why(name, advice, tmp_path, monkeypatch):
    """The linker's reason; and not to install again what would be the same file."""
    path = tmp_path / name.format(*torch.__version__.split(".")[:2])
    path.write_bytes(b"no library")
    monkeypatch.setattr(loading, "FOLDER", tmp_path)
    found, error = loading.load()
    assert found == path
    assert error.startswith(f"{path}: ")
    assert error.endswith(f"; if it was built against another PyTorch, {advice}")


@pytest.mark.parametrize("command", [("script.py",), ("-m", "package.train")], ids=" ".join)
def test_the_warning_names_the_line_that_imports(command, tmp_path):
    """Also of a package that is run by its name, whose own import comes before its module."""
    from test_import import copy_without_extension

    package = copy_without_extension(tmp_path) / "package"
    package.mkdir()
    (package / "train.py").touch()
    importing = tmp_path / "script.py" if len(command) == 1 else package / "__init__.py"
    importing.write_text("\nimport rrd_kernels\n")
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr.startswith(f"{importing}:2: RuntimeWarning: rrd_kernels runs on")


WORKER = """
import multiprocessing, sys
import rrd_kernels
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=print, args=("worker",))
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""


@pytest.mark.parametrize(("rank", "warnings"), [("0", 1), ("1", 0)])
def test_workers_and_other_ranks_do_not_repeat_the_warning(rank, warnings, tmp_path):
    """Each spawned worker runs the script again, its imports included."""
    from test_import import copy_without_extension

    (copy_without_extension(tmp_path) / "script.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"LOCAL_RANK": rank},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "worker\n"
    assert done.stderr.count("runs on its plain PyTorch reference") == warnings
