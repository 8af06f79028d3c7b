"""What the benchmark does on a GPU alone, on a stand-in for one: its figures mean nothing."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import stand_in_gpu
import torch
from stand_in_gpu import GPU

from benchmarks import breakdown, host_time, record, report
from benchmarks.cases import Case, axes_for, cases_for
from benchmarks.implementations import COMPILED
from benchmarks.peers import Fused, PublishedEager
from benchmarks.run import Row, run_case

CASE = Case(4, 32, "float32", 8)


@pytest.fixture(scope="module")
def gpu() -> Iterator[None]:
    with stand_in_gpu.in_place():
        yield


@pytest.fixture(scope="module")
def written(gpu, tmp_path_factory) -> tuple[dict[str, Any], str]:
    """The record of the quick report, and what it has printed."""
    path = tmp_path_factory.mktemp("report") / "record.json"
    arguments = ["--device", "cuda", "--quick", "--compile", "none", "--output", str(path)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert report.main(arguments) == 0
    return record.load(path), printed.getvalue()


def of(one: Mapping[str, Any], kind: type) -> bool:
    return one["implementation"] == kind.name


class TestReport:
    def test_the_machine(self, written):
        measured, _ = written
        assert measured["gpu"]["name"] == stand_in_gpu.NAME
        assert measured["versions"]["cuda"] == torch.version.cuda
        assert measured["cache_bytes"] == stand_in_gpu.CACHE_BYTES
        assert "kernels" not in measured  # a CPU's

    def test_every_case_has_a_graph_unless_it_waits(self, written):
        measured, printed = written
        fused = [row for row in measured["rows"] if of(row, Fused) and "seconds" in row]
        assert {row["case"]["dtype_name"] for row in fused} == {"float32", "bfloat16"}
        for row in fused:
            assert row["not_captured"] is None
            assert row["replay"]["seconds"]["median"] > 0
            assert row["extra_bytes"] == stand_in_gpu.PEAK_BYTES
            write = "update" if "n_data" in row["case"] else "enqueue"
            assert row["parts"].keys() == {"forward", "backward", write}
        eager = [row for row in measured["rows"] if of(row, PublishedEager)]
        assert {row["not_captured"] for row in eager} == {"it waits for the device"}
        assert {row["replay"] for row in eager} == {None}
        assert "µs in a graph" in printed

    def test_the_host_s_time(self, written):
        measured, printed = written
        profile = measured["host_time"]
        names = [layer["name"] for layer in profile["layers"]]
        assert names[0] == "kernels, beside the host"
        assert names[1] == "operator: dispatcher, allocations, launches"
        assert profile["launches"] == stand_in_gpu.LAUNCHES
        assert f"{stand_in_gpu.LAUNCHES} launches in the driver" in printed

    def test_kernels_make_the_breakdown(self, written):
        measured, _ = written
        names = {
            part["name"]
            for one in measured["breakdowns"]
            if one["implementation"] == Fused.name
            for part in one["parts"]
        }
        assert "rrd_kernels::relational_loss_forward" in names
        assert not {stand_in_gpu.LAUNCH, stand_in_gpu.RANGE} & names

    def test_growth_in_this_process(self, written):
        measured, _ = written
        for axis in axes_for(GPU, quick=True):
            [series] = [
                one
                for one in measured["scaling"]
                if one["axis"]["name"] == axis.name and one["implementation"] == Fused.name
            ]
            assert series["memory_limit"] is None
            assert [point["value"] for point in series["points"]] == list(axis.values)
            assert {point["extra_bytes"] for point in series["points"]} == {stand_in_gpu.PEAK_BYTES}


def fused_row(results) -> Row:
    [row] = [found for found in results if found.implementation == Fused.name]
    assert isinstance(row, Row)
    return row


@pytest.mark.usefixtures("gpu")
class TestWhatFails:
    def test_a_step_that_no_graph_can_hold(self, monkeypatch):
        def refuse(graph, stream):
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA says more")

        monkeypatch.setattr(torch.cuda, "graph", refuse)
        row = fused_row(run_case(CASE, 0, GPU, without=COMPILED))
        expected = "RuntimeError: operation not permitted when stream is capturing"
        assert (row.replay, row.not_captured) == (None, expected)
        assert row.best_seconds == row.seconds.median

    def test_a_graph_that_does_not_do_the_steps(self, monkeypatch):
        monkeypatch.setattr(stand_in_gpu.Graph, "replay", lambda self: None)
        row = fused_row(run_case(CASE, 0, GPU, without=COMPILED))
        assert row.not_captured == "RuntimeError: the replay does not do the steps"

    def test_memory_that_the_others_have_taken(self, monkeypatch):
        def exhausted():
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", exhausted)
        row = fused_row(run_case(CASE, 0, GPU, without=COMPILED))
        assert row.no_memory == "out of memory: OutOfMemoryError: CUDA out of memory."
        assert row.replay is not None

    def test_a_profiler_that_sees_no_kernel(self, monkeypatch):
        monkeypatch.setattr(stand_in_gpu.Profile, "key_averages", lambda self: [])
        case = cases_for(GPU, quick=True)[0]
        for one in breakdown.breakdowns(case, GPU, 1):
            assert not one.parts
            assert one.reason is not None
        assert one.reason == "RuntimeError: the profiler saw nothing that ran on cuda"
        profile = host_time.profile(4, 32, GPU, 0)
        assert (profile.launches, profile.launch_seconds) == (None, None)
