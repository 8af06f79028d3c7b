"""Parallel regions of the CPU operators: how many each opens, and what the threads in one do."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
from torch.nn.functional import normalize

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "tests" / "threads"
TORCH = Path(torch.__file__).parent
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("g++") is None
    or "backend: OpenMP" not in torch.__config__.parallel_info(),
    reason="needs g++ and PyTorch with GNU's OpenMP",
)


def operators(batch: int, rows: int, drawn: int, dim: int) -> dict[str, Callable[[], object]]:
    """Calls with memories of so many rows, of which the momentum memory's loss draws some."""
    ops = torch.ops.rrd_kernels
    z_s, z_t = torch.randn(2, batch, dim)
    fifo, v1, v2 = normalize(torch.randn(3, rows, dim), dim=2)
    longer = 1000 * fifo
    ptr, idx = torch.tensor([0]), torch.arange(batch)
    views, unset = (z_s, z_t, v1, v2, torch.randint(rows, (batch, drawn))), torch.tensor([-1.0, -1])
    taus, precision, mean = (0.1, 0.02), "float32", 1

    def loss(memory: torch.Tensor) -> object:
        settings = (*taus, True, False, False, precision, mean, True)
        return ops.relational_loss_forward(z_s, z_t, memory, *settings)

    def sampled(method: str) -> object:
        settings = (None, *taus, 0.07, precision, mean, method, True)
        return ops.sampled_relational_loss_forward(*views, *settings)

    def contrastive(method: str) -> object:
        settings = (torch.ones(2), 0.07, precision, mean, method, True, True)
        return ops.sampled_contrastive_loss_forward(*views, *settings)

    return {
        "relational_loss": lambda: loss(fifo),
        # Not unit rows, as it is told: there is a second pass, with a running maximum.
        "relational_loss, again": lambda: loss(longer),
        "relational_partials": lambda: ops.relational_partials(
            z_s, z_t, fifo, *taus, True, False, precision, True
        ),
        "enqueue_": lambda: ops.enqueue_(fifo, ptr, z_t, False, 0.0),
        "dense": lambda: sampled("dense"),
        "gather": lambda: sampled("gather"),
        "contrastive, dense": lambda: contrastive("dense"),
        "contrastive, gather": lambda: contrastive("gather"),
        "estimate_normalizers_": lambda: ops.estimate_normalizers_(unset, *views, 0.07),
        "momentum_update_": lambda: ops.momentum_update_(v1, idx, z_t, 0.5),
    }


NAMES = list(operators(1, 1, 1, 1))
NONE = dict.fromkeys(NAMES, 0)
#: By batch, rows, drawn rows and dim: all phases of an operator share a region. What is written in
#: a step of usual size is little work.
STEP = dict.fromkeys(NAMES, 1) | {"enqueue_": 0, "momentum_update_": 0}
REGIONS = {
    (8, 64, 16, 16): NONE,
    (64, 64, 64, 128): NONE
    | dict.fromkeys(("gather", "contrastive, gather", "estimate_normalizers_"), 1),
    (64, 4096, 513, 128): STEP,
    # The check of so many indices is a region of its own, since it comes before all else.
    (1024, 4096, 513, 128): dict.fromkeys(NAMES, 1)
    | {name: 2 for name in NAMES if name.endswith(("dense", "gather", "estimate_normalizers_"))},
}


def compiled(tmp_path: Path, source: str, *options: object) -> Path:
    library = tmp_path / Path(source).with_suffix(".so").name
    command = ["g++" if source.endswith("cpp") else "gcc", "-shared", "-fPIC", "-O1", "-Wall"]
    command += ["-o", str(library), str(SOURCES / source), *map(str, options)]
    subprocess.run(command, check=True)
    return library


def print_regions(library: str) -> None:
    """Of each call, a line for each of the sizes."""
    opened = ctypes.CDLL(library).regions_opened
    torch.set_num_threads(2)
    for sizes in REGIONS:
        found = []
        for call in operators(*sizes).values():
            before = opened()
            call()
            found.append(opened() - before)
        print(*found)
    before = opened()
    torch.randn(1 << 20).exp_()
    assert opened() > before, "it counts nothing"


@needs_compiler
def test_an_operator_opens_one_region_and_none_for_little_work(tmp_path):
    library = compiled(tmp_path, "regions.c", "-ldl")
    script = "import sys, rrd_kernels, test_threads; test_threads.print_regions(sys.argv[1])"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ended = subprocess.run(
        [sys.executable, "-c", script, library],
        env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = [
        dict(zip(NAMES, map(int, line.split()), strict=True)) for line in ended.stdout.splitlines()
    ]
    assert dict(zip(REGIONS, found, strict=True)) == REGIONS


def test_every_region_is_opened_in_one_place():
    found = {
        path.name
        for path in (ROOT / "csrc").rglob("*.*")
        if re.search(
            r"parallel_for|parallel_reduce|GOMP_|#\s*pragma omp|std::j?thread\b(?!::)",
            path.read_text(),
        )
    }
    assert found == {"parallel.h"}


def print_phases(library: str) -> None:
    phases = ctypes.CDLL(library)
    for threads in (1, 2, 4):
        assert phases.unfinished_phases(threads, 200, 7) == 0
        assert phases.raises(threads) == 1
    assert [phases.threads_for_two_tasks(threads) for threads in (1, 2, 4)] == [1, 2, 2]
    found = [ctypes.c_int() for _ in range(3)]
    phases.after_a_loss(*map(ctypes.byref, found))
    print(*(threads.value for threads in found))


@needs_compiler
@pytest.mark.parametrize("openmp", ["-fopenmp", "-fno-openmp"])
def test_phases_errors_and_threads_that_come_late(tmp_path, openmp):
    """A phase begins when the one before is done; an error ends all; and after a region in which a
    thread came late the next ones stay on the calling thread, until that is paid back. No thread
    without a task enters. All that also where the compiler opens no regions, as Clang does not in
    PyTorch's runtime."""
    include, libraries = TORCH / "include", TORCH / "lib"
    options = ("-std=c++20", openmp, f"-I{ROOT / 'csrc'}", "-isystem", include)
    linked = (f"-L{libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}")
    ended = forked.run(print_phases, str(compiled(tmp_path, "phases.cpp", *options, *linked)))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["2", "1", "2"]
