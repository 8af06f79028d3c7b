"""The sweep over plans, on a stand-in for a GPU: its figures mean nothing."""

import contextlib
import ctypes
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import stand_in_gpu
import torch

from benchmarks import measure, resources, sweep, variants
from benchmarks.inputs import draw
from benchmarks.measure import DISAGREES, NOT_AVAILABLE, NOT_MEASURED
from benchmarks.resources import Resources
from benchmarks.sweep_rows import MARK
from benchmarks.variants import SIZES, TABLE
from rrd_kernels.triton.launch import Loaded, specialize
from rrd_kernels.triton.step import Settings, step_launches

RESOURCES = Resources(registers=148, local_bytes=16, shared_bytes=64 * 1024, programs=3)
DEPENDENT, SPLITS = "dependent launches", "26 splits"


@pytest.fixture
def gpu() -> Iterator[None]:
    with (
        mock.patch.object(stand_in_gpu, "CACHE_BYTES", 0),  # one copy of each memory
        mock.patch.object(measure, "BLOCK_CALLS", 1),
        mock.patch.object(sweep, "resources", return_value=RESOURCES),
        stand_in_gpu.in_place(),
    ):
        yield


def swept(path: Path) -> tuple[int, dict[str, dict[str, Any]], str]:
    """The exit code, the rows of one size by name, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = sweep.main(["--quick", "--cases", "bfloat16", "--output", str(path)])
    return code, rows_of(path), printed.getvalue()


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["variant"]["name"]: row for row in json.loads(path.read_text())["rows"]}


def line_of(name: str, printed: str) -> str:
    [line] = [line for line in printed.splitlines() if f" {name} " in line]
    return line


@pytest.mark.usefixtures("gpu")
class TestSweep:
    def test_every_variant_is_checked_and_timed(self, tmp_path):
        path = tmp_path / "sweep.json"
        code, rows, printed = swept(path)
        assert code == 0
        assert next(iter(rows)) == TABLE
        assert {DEPENDENT, SPLITS} < rows.keys()
        for row in rows.values():
            assert row["outcome"] is None
            assert 0 < row["errors"]["gradient"] < 0.1
            assert row["seconds"]["median"] > 0
            assert row["rounds"] == 7
            assert row["resources"]["registers"] == RESOURCES.registers
        record = json.loads(path.read_text())
        rate = 1e9 * record["mm_gflops"]["bfloat16"]
        table = rows[TABLE]
        operations = 8 * 16 * 128 * 512
        assert table["share_of_mm"] == pytest.approx(operations / table["seconds"]["median"] / rate)
        assert line_of("bfloat16 16×512", printed).split()[-4:] == ["148", "16", "64", "3"]

    def test_what_fails_is_named_and_ends_nothing(self, tmp_path, monkeypatch):
        def run(launches):
            if launches[1].dependent:
                raise RuntimeError("operation not supported\nthe driver says more")
            stand_in_gpu.run(launches)
            if launches[1].constants["STAGES"] == 2:
                launches[2].arguments["grad_z_s"].mul_(1.5)

        monkeypatch.setattr(variants, "run", run)
        code, rows, printed = swept(tmp_path / "sweep.json")
        assert code == 1
        wrong = {name for name in rows if "2 stages" in name}
        assert {name for name, row in rows.items() if row["outcome"] == DISAGREES} == wrong
        assert rows[DEPENDENT]["outcome"] == NOT_AVAILABLE
        assert f"{DEPENDENT}: {NOT_AVAILABLE}, RuntimeError: operation not supported\n" in printed
        for name in rows.keys() - wrong - {DEPENDENT}:
            assert rows[name]["seconds"] is not None

    def test_what_gains_is_marked(self, tmp_path, monkeypatch):
        taken = {TABLE: [1.05, 2.10], DEPENDENT: [1.0, 2.0], SPLITS: [1.01, 2.02]}
        monkeypatch.setattr(sweep, "interleaved", lambda timers, seconds: taken)
        _, rows, printed = swept(tmp_path / "sweep.json")
        assert {name for name, row in rows.items() if row["worth_it"]} == {DEPENDENT}
        assert rows[DEPENDENT]["gain"] == pytest.approx(1.05)
        assert MARK in line_of(DEPENDENT, printed)
        assert MARK not in line_of(SPLITS, printed)

    def test_no_time_is_no_failure(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sweep, "TOTAL_SECONDS", -1e6)
        code, rows, _ = swept(tmp_path / "sweep.json")
        assert code == 0
        assert {row["outcome"] for row in rows.values()} == {NOT_MEASURED}

    def test_an_interrupt_loses_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sweep, "interleaved", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            swept(tmp_path / "sweep.json")
        for row in rows_of(tmp_path / "sweep.json").values():
            assert row["errors"]["gradient"] > 0
            assert row["seconds"] is None


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        sweep.main([])
    assert "compute capability 9.0" in capsys.readouterr().err


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
class TestVariants:
    def test_each_way_once(self, case):
        listed = variants.variants(case)
        for told_apart in ({variant.name for variant in listed}, {v.how for v in listed}):
            assert len(told_apart) == len(listed) > 5

    def test_the_first_is_the_table_s(self, case):
        table = variants.described(case, variants.variants(case)[0])
        z_s, z_t = torch.empty(2, case.batch, case.dim, dtype=case.dtype, device="meta")
        memory = torch.empty(case.rows, case.dim, dtype=case.dtype, device="meta")
        pointer = torch.empty(1, dtype=torch.int64, device="meta")
        settings = Settings(case.tau_s, case.tau_t, True, case.format, 1, True, "before")
        own = step_launches(z_s, z_t, memory, pointer, settings, variants.H200)[1]
        assert [(specialize(one), one.grid) for one in table] == [
            (specialize(one), one.grid) for one in own
        ]


def test_what_is_wanted_ahead_is_what_is_launched():
    """On tensors that have memory, as the sweep draws them."""
    ahead = set(map(specialize, variants.wanted()))
    for case in (case for case in SIZES if case.batch == 64):
        (memory, pointer), batches = draw(case, torch.device("cpu"))
        for variant in variants.variants(case):
            _, launches = variants.launches(case, variant, *batches[-1], memory, pointer)
            assert set(map(specialize, launches)) <= ahead


class TestResources:
    """Through a driver that writes what it is asked for."""

    @pytest.fixture
    def driver(self, monkeypatch):
        def attribute(number, which, function):
            number._obj.value = {4: 148, 3: 16}[which]  # cuda.h: NUM_REGS, LOCAL_SIZE_BYTES
            return 0

        def occupancy(number, function, threads, shared_bytes):
            number._obj.value = 65536 // (148 * threads) if shared_bytes.value == 65536 else 0
            return 0

        driver = mock.Mock(
            cuFuncGetAttribute=mock.Mock(side_effect=attribute),
            cuOccupancyMaxActiveBlocksPerMultiprocessor=occupancy,
        )
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(resources, "load", lambda launch, device: Loaded(1, 128, 65536, ()))
        return driver

    def test_what_the_driver_says(self, driver):
        assert resources.resources(None) == Resources(148, 16, 65536, 3)

    def test_an_error(self, driver):
        driver.cuFuncGetAttribute = lambda *arguments: 400
        with pytest.raises(RuntimeError, match="error 400"):
            resources.resources(None)

    def test_a_kernel_that_only_triton_launches(self, driver, monkeypatch):
        monkeypatch.setattr(resources, "load", lambda launch, device: None)
        with pytest.raises(RuntimeError, match="does not launch it"):
            resources.resources(None)
