"""The sweep over plans, on a stand-in for a GPU: its figures mean nothing."""

import ctypes
import json
import sys
from unittest import mock

import pytest
import stand_in_gpu
import torch

from benchmarks.cases.inputs import draw
from benchmarks.sweep import __main__ as sweep
from benchmarks.sweep import variants
from benchmarks.sweep.variants import SIZES, TABLE
from rrd_kernels.triton.launch import Loaded, specialize
from rrd_kernels.triton.plan import make_plan

NEEDED = {"registers": 148, "spilled": 16, "shared": 65536, "programs": 3}
DEPENDENT, SMALLER = "dependent launches", "64×64, 4 warps, 3 stages, ×3"


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Sweeps one tiny size; returns the exit code, and the rows by their variants' names."""
    path = tmp_path / "sweep.json"
    monkeypatch.setattr(stand_in_gpu, "CACHE_BYTES", 0)  # one copy of each memory
    monkeypatch.setattr(variants, "QUICK_SIZES", variants.QUICK_SIZES[:1])
    monkeypatch.setattr(sweep, "resources", lambda launch: NEEDED)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["sweep", "--quick", "--output", str(path), *options])
        try:
            code = sweep.main()
        except KeyboardInterrupt:
            code = None
        return code, {row["variant"]: row for row in json.loads(path.read_text())["rows"]}

    with stand_in_gpu.in_place():
        yield run


def test_every_variant_is_checked_and_timed(swept, capsys):
    code, rows = swept()
    assert code == 0
    assert next(iter(rows)) == TABLE
    assert {DEPENDENT, SMALLER} < rows.keys()
    for row in rows.values():
        assert row["outcome"] is None
        assert 0 < row["errors"]["gradient"] < 0.1
        assert row["seconds"]["median"] > 0
        assert row["resources"] == NEEDED
    assert f"{TABLE}: 1.00 × table, {NEEDED}" in capsys.readouterr().out


def test_what_fails_is_named_and_ends_nothing(swept, monkeypatch, capsys):
    def run(launches):
        if launches[1].dependent:
            raise RuntimeError("operation not supported\nthe driver says more")
        stand_in_gpu.run(launches)
        if launches[1].constants["STAGES"] == 2:
            launches[2].arguments["grad_z_s"].mul_(1.5)

    monkeypatch.setattr(variants, "run", run)
    code, rows = swept()
    assert code == 1
    wrong = {name for name in rows if "2 stages" in name}
    assert wrong
    for name, row in rows.items():
        assert bool(row["outcome"]) == (row["seconds"] is None) == (name in wrong | {DEPENDENT})
    assert all("ArithmeticError" in rows[name]["outcome"] for name in wrong)
    assert f"{DEPENDENT}: RuntimeError: operation not supported\n" in capsys.readouterr().out


def test_no_time_is_no_failure(swept):
    assert swept("--within", "-1") == (0, {})


def test_an_interrupt_loses_nothing(swept, monkeypatch):
    monkeypatch.setattr(sweep, "interleaved", mock.Mock(side_effect=KeyboardInterrupt))
    _, rows = swept()
    assert len(rows) > 5
    assert all(row["errors"]["gradient"] > 0 for row in rows.values())


def kernels(launches):
    return tuple((specialize(launch), launch.grid, launch.dependent) for launch in launches)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_variants_differ_and_the_first_is_the_tables(case):
    listed = variants.variants(case)
    launched = [kernels(variants.described(case, variant)) for variant in listed]
    assert len({variant.name for variant in listed}) == len(set(launched)) == len(listed) > 3
    sizes = (case.batch, case.rows, case.dim, case.format, case.dtype.itemsize)
    assert listed[0] == (TABLE, make_plan(*sizes, True, variants.H200), ())


def test_what_is_wanted_ahead_is_what_is_launched():
    """On tensors that have memory, as the sweep draws them."""
    ahead = set(map(specialize, variants.wanted()))
    for case in (case for case in SIZES if case.batch == 64):
        state, batches = draw(case, torch.device("cpu"))
        for variant in variants.variants(case):
            step = variants.VariantStep(case, state, variant)
            assert set(map(specialize, step.launches(*batches[-1])[1])) <= ahead


def test_resources_are_what_the_driver_says(monkeypatch):
    """Through a driver that writes what it is asked for."""

    def attribute(number, which, function):
        number._obj.value = {4: 148, 3: 16}[which]  # cuda.h: NUM_REGS, LOCAL_SIZE_BYTES

    def occupancy(number, function, threads, shared):
        number._obj.value = 65536 // (148 * threads) if shared.value == 65536 else 0

    driver = mock.Mock(cuFuncGetAttribute=attribute)
    driver.cuOccupancyMaxActiveBlocksPerMultiprocessor = occupancy
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(sweep, "load", lambda launch, device: Loaded(1, 128, 65536, ()))
    assert sweep.resources(None) == NEEDED
