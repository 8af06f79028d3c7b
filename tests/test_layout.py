"""Files and folders need each other in one direction only: no cycle, of types neither."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON, CPP = ROOT / "rrd_kernels", ROOT / "csrc"
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/**/*.md"))),
]


def imported(path: Path) -> Iterator[Path]:
    """What a Python file imports of the package, wherever in the file and for whatever."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "rrd_kernels":
                yield next(filter(Path.exists, candidates(parts)))


def candidates(parts: list[str]) -> Iterator[Path]:
    """Where a dotted name may be defined, most likely first: it may end in a function's name."""
    for count in range(len(parts), 0, -1):
        yield ROOT.joinpath(*parts[:count]).with_suffix(".py")
        yield ROOT.joinpath(*parts[:count], "__init__.py")


def included(path: Path) -> Iterator[Path]:
    """What a C++ file includes of csrc/."""
    for name in re.findall(r'^#include "(.*)"$', path.read_text(), re.MULTILINE):
        assert (CPP / name).exists(), (path, name)
        yield CPP / name


def arrows(root: Path) -> set[tuple[Path, Path]]:
    """(A, B) where file A needs file B."""
    if root == PYTHON:
        files, needs = root.rglob("*.py"), imported
    else:
        files, needs = (path for path in root.rglob("*") if path.is_file()), included
    return {(path, needed) for path in files for needed in needs(path)}


def cycle(found: set[tuple[Path, Path]]) -> list[Path]:
    sorter: TopologicalSorter[Path] = TopologicalSorter()
    for path, needed in found:
        sorter.add(path, needed)
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1]
    return []


def between(folder: Path, found: set[tuple[Path, Path]]) -> set[tuple[Path, Path]]:
    """Arrows between what stands in a folder: files, and folders as wholes."""

    def child(path: Path) -> Path:
        return folder / path.relative_to(folder).parts[0]

    inside = {pair for pair in found if all(path.is_relative_to(folder) for path in pair)}
    pairs = {(child(path), child(needed)) for path, needed in inside}
    return {(path, needed) for path, needed in pairs if path != needed}


@pytest.mark.parametrize("root", [PYTHON, CPP], ids=["python", "cpp"])
def test_nothing_needs_itself(root):
    found = arrows(root)
    assert len(found) > 50
    assert cycle(found) == []
    for folder in {root, *(path for path in root.rglob("*") if path.is_dir())}:
        assert cycle(between(folder, found)) == [], folder


def test_a_cycle_is_found():
    a, b, c = PYTHON / "one" / "a.py", PYTHON / "one" / "b.py", PYTHON / "two" / "c.py"
    assert cycle({(a, b), (b, c)}) == []
    assert len(cycle({(a, b), (b, a)})) == 3
    # No cycle of files, but one of their folders.
    assert cycle({(a, c), (c, b)}) == []
    assert len(cycle(between(PYTHON, {(a, c), (c, b)}))) == 3


def test_every_import_counts(tmp_path):
    """Whether it stands in a function, or is for types only. Not the one by name with which
    runtime/compiler.py loads the kernel that a launch names."""
    found = arrows(PYTHON)
    assert (PYTHON / "triton/runtime/run.py", PYTHON / "triton/runtime/compiler.py") in found
    assert (PYTHON / "extension.py", PYTHON / "triton/fifo/operators.py") in found
    path = tmp_path / "module.py"
    path.write_text("if TYPE_CHECKING:\n    from rrd_kernels.fifo.state import FifoState\n")
    assert list(imported(path)) == [PYTHON / "fifo" / "state.py"]


def named(document: Path) -> set[str]:
    """But in a diff, which is of someone else's files."""
    text = re.sub(r"(?s)```diff\n.*?```", "", document.read_text())
    return set(re.findall(r"\w[\w/-]*\.(?:py|cpp|inl|h)\b", text))


#: The reader's files, and those of published code.
OTHERS = {"train.py", "script.py", "builder.py", "main_small-patch.py", "ressl_multi.py"}
OTHERS |= {"main_moco.py", "ressl.py", "tools/utils.py"}
OTHERS |= {"train_isd_plus.py", "train_student_one_queue.py"}
OTHERS |= {"solo/methods/mocov2plus.py", "solo/methods/ressl.py"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_documents_name_exist(name):
    folders = ("rrd_kernels", "csrc", "benchmarks", "examples", "release", "tests", "docs")
    files = [f"/{path}" for folder in folders for path in (ROOT / folder).rglob("*.*")]
    files += map(str, ROOT.glob("*.py"))
    found = named(ROOT / name) - OTHERS
    assert {file for file in found if not any(path.endswith(f"/{file}") for path in files)} == set()


def test_names_of_files_are_found():
    assert len(named(ROOT / "CONTRIBUTING.md")) > 50
