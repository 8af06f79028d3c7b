"""The sweep over plans, on a stand-in for a GPU: its figures mean nothing."""

import ctypes
import json
from unittest import mock

import pytest
import stand_in_gpu
import torch

from benchmarks.inputs import draw
from benchmarks.sweep import __main__ as sweep
from benchmarks.sweep import resources, variants
from benchmarks.sweep.variants import SIZES, TABLE
from rrd_kernels.triton.launch import Loaded, specialize
from rrd_kernels.triton.step import Settings, step_launches

NEEDED = {"registers": 148, "spilled": 16, "shared": 65536, "programs": 3}
DEPENDENT, SPLITS = "dependent launches", "26 splits"


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Sweeps one tiny size; returns the exit code, and the rows by their variants' names."""
    path = tmp_path / "sweep.json"
    monkeypatch.setattr(stand_in_gpu, "CACHE_BYTES", 0)  # one copy of each memory
    monkeypatch.setattr(variants, "QUICK_SIZES", variants.QUICK_SIZES[:1])
    monkeypatch.setattr(sweep, "resources", lambda launch: NEEDED)

    def run(*options):
        try:
            code = sweep.main(["--quick", "--output", str(path), *options])
        except KeyboardInterrupt:
            code = None
        rows = json.loads(path.read_text())["rows"]
        return code, {row["variant"]["name"]: row for row in rows}

    with stand_in_gpu.in_place():
        yield run


def test_every_variant_is_checked_and_timed(swept, capsys):
    code, rows = swept()
    assert code == 0
    assert next(iter(rows)) == TABLE
    assert {DEPENDENT, SPLITS} < rows.keys()
    for row in rows.values():
        assert row["outcome"] is None
        assert 0 < row["errors"]["gradient"] < 0.1
        assert row["seconds"]["median"] > 0
        assert row["resources"] == NEEDED
    assert "registers 148, spilled 16, shared 65536, programs 3" in capsys.readouterr().out


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
    failed = {name for name, row in rows.items() if row["outcome"] and row["seconds"] is None}
    wrong = {name for name in rows if "2 stages" in name}
    assert wrong
    assert failed == wrong | {DEPENDENT}
    assert all("ArithmeticError" in rows[name]["outcome"] for name in wrong)
    assert f"{DEPENDENT}: RuntimeError: operation not supported\n" in capsys.readouterr().out


def test_gain_is_the_median_over_the_rounds(swept, monkeypatch):
    taken = {TABLE: [1.0, 2.0, 3.0], SPLITS: [0.5, 1.6, 1.5]}
    monkeypatch.setattr(sweep, "interleaved", lambda timers, seconds: taken)
    _, rows = swept()
    assert rows[SPLITS]["gain"] == 2.0
    assert rows[DEPENDENT]["gain"] is None


def test_no_time_is_no_failure(swept):
    code, rows = swept("--within", "-1")
    assert code == 0
    assert {row["outcome"] for row in rows.values()} == {sweep.NOT_REACHED}


def test_an_interrupt_loses_nothing(swept, monkeypatch):
    monkeypatch.setattr(sweep, "interleaved", mock.Mock(side_effect=KeyboardInterrupt))
    _, rows = swept()
    assert all(row["errors"]["gradient"] > 0 for row in rows.values())


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        sweep.main([])
    assert "compute capability 9.0" in capsys.readouterr().err


def kernels(launches):
    return tuple((specialize(launch), launch.grid) for launch in launches)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_variants_differ_and_the_first_is_the_tables(case):
    listed = variants.variants(case)
    launched = [kernels(variants.described(case, variant)) for variant in listed]
    assert len({variant.name for variant in listed}) == len(set(launched)) == len(listed) > 5
    z_s, z_t = torch.empty(2, case.batch, case.dim, dtype=case.dtype, device="meta")
    memory = torch.empty(case.rows, case.dim, dtype=case.dtype, device="meta")
    pointer = torch.empty(1, dtype=torch.int64, device="meta")
    settings = Settings(case.tau_s, case.tau_t, True, case.format, 1, True, "before")
    own = step_launches(z_s, z_t, memory, pointer, settings, variants.H200)[1]
    assert launched[0] == kernels(own)


def test_what_is_wanted_ahead_is_what_is_launched():
    """On tensors that have memory, as the sweep draws them."""
    ahead = set(map(specialize, variants.wanted()))
    for case in (case for case in SIZES if case.batch == 64):
        (memory, pointer), batches = draw(case, torch.device("cpu"))
        for variant in variants.variants(case):
            _, launches = variants.launches(case, variant, *batches[-1], memory, pointer)
            assert set(map(specialize, launches)) <= ahead


def test_resources_are_what_the_driver_says(monkeypatch):
    """Through a driver that writes what it is asked for."""

    def attribute(number, which, function):
        number._obj.value = {4: 148, 3: 16}[which]  # cuda.h: NUM_REGS, LOCAL_SIZE_BYTES
        return 0

    def occupancy(number, function, threads, shared):
        number._obj.value = 65536 // (148 * threads) if shared.value == 65536 else 0
        return 0

    driver = mock.Mock(cuFuncGetAttribute=attribute)
    driver.cuOccupancyMaxActiveBlocksPerMultiprocessor = occupancy
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(resources, "load", lambda launch, device: Loaded(1, 128, 65536, ()))
    assert resources.resources(None) == NEEDED
    driver.cuFuncGetAttribute = lambda *arguments: 400
    with pytest.raises(RuntimeError, match="error 400"):
        resources.resources(None)
