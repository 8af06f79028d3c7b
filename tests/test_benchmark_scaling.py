"""Exponents are those of the points, and running out of memory is a result."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import hardware, part_tables, scaling
from benchmarks.cases import Axis, Case, axes_for
from benchmarks.figures import CPU_UNITS
from benchmarks.fits import power_law
from benchmarks.hardware import available_memory
from benchmarks.isolated import fatal
from benchmarks.measure import NOT_MEASURED, Spread
from benchmarks.peers import Fused, PublishedEager
from benchmarks.scaling import Point, Series

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
AXIS = Axis("rows", Case(16, 0, "float32"), (128, 256, 512))


class TestPowerLaw:
    def test_points_on_a_line(self):
        fit = power_law([1.0, 2.0, 8.0], [3.0, 6.0 * 2**0.5, 3.0 * 8**1.5])
        assert fit.exponent == pytest.approx(1.5)
        assert fit.scale == pytest.approx(3.0)
        assert fit.off_by == pytest.approx(1.0)
        assert fit(4.0) == pytest.approx(24.0)

    def test_points_off_the_line(self):
        """Each of four off by a factor f, up, down, down, up: the slope stays, and f is found."""
        f = 1.25
        fit = power_law([1.0, 2.0, 4.0, 8.0], [f, 2 / f, 4 / f, 8 * f])
        assert fit.exponent == pytest.approx(1.0)
        assert fit.off_by == pytest.approx(f)

    def test_two_points_are_not_enough(self):
        assert power_law([1.0, 2.0], [1.0, 2.0]) is None


@pytest.mark.parametrize("kind", [PublishedEager, Fused])
def test_each_size_is_a_point(kind, device):
    points = list(scaling.measure(kind, AXIS, device, 0.0))
    assert [point.value for point in points] == list(AXIS.values)
    for point in points:
        assert point.seconds.median > 0
        assert point.rounds >= 1


@pytest.mark.parametrize(
    ("each", "rounds"),
    [
        (0.01, 7),
        (0.4, 7),  # 2.8 s
        (0.6, 5),  # a sixth would end later than after 3 s
        (1.4, 3),  # 2.8 s would be enough for two
        (2.9, 3),
        (3.1, 1),
    ],
)
def test_three_rounds_where_one_takes_less_than_three_seconds(each, rounds, monkeypatch):
    """With a clock that only steps move."""
    now = [0.0]

    def wall_time(call, device):
        now[0] += each
        return each

    monkeypatch.setattr(scaling.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(scaling, "wall_time", wall_time)
    axis = replace(AXIS, values=(128,))
    [point] = scaling.measure(Fused, axis, CPU, 0.0)
    assert (point.rounds, point.seconds.median) == (rounds, each)


class FailsAt256(Fused):
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."

    def __call__(self, z_s, z_t):
        if len(self.memory) == 256:
            raise RuntimeError(self.message)
        return super().__call__(z_s, z_t)


class BreaksAt256(FailsAt256):
    message = "it broke"


def test_a_reference_without_memory_is_not_the_kernels_failure(monkeypatch):
    def no_room(*settings):
        raise torch.OutOfMemoryError("no room for float64")

    monkeypatch.setattr(scaling, "FifoAgreement", no_room)
    [point] = scaling.measure(Fused, AXIS, CPU, 0.0)
    assert (point.outcome, point.reason) == (
        NOT_MEASURED,
        "the reference: OutOfMemoryError: no room for float64",
    )


class WrongGradient(Fused):
    def __call__(self, z_s, z_t):
        loss, grad = super().__call__(z_s, z_t)
        return loss, 1.001 * grad


@pytest.mark.parametrize(
    ("kind", "outcome", "values"),
    [
        (FailsAt256, "out of memory", [128, 256]),
        (BreaksAt256, "not available", [128, 256]),
        (WrongGradient, "disagrees", [128]),
    ],
)
def test_a_series_ends_where_it_fails(kind, outcome, values):
    points = list(scaling.measure(kind, AXIS, CPU, 0.0))
    assert [point.value for point in points] == values
    assert points[-1].outcome == outcome
    assert points[-1].seconds is None
    assert all(point.seconds for point in points[:-1])


def process(limit: int) -> list[Point]:
    """Of the published code, which wants 64 MiB for each of several 512 × 32768 matrices; the
    reference, of 16 samples, wants the memory in float64, 32 MiB, and a few of 4 MiB. The C library
    takes 64 MiB of addresses for each thread that allocates."""
    axis = Axis("rows", Case(512, 0, "float32"), (512, 32768))
    return list(scaling._isolated(PublishedEager, axis, 0.0, limit))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
class TestProcess:
    def test_with_enough_memory(self):
        small, large = process(available_memory())
        assert small.seconds
        assert large.seconds
        assert large.extra_bytes > 4 * (64 << 20)

    def test_without(self):
        small, large = process(300 << 20)
        assert small.seconds
        assert large.outcome == "out of memory"
        assert large.reason

    def test_a_container_has_less(self, tmp_path, monkeypatch):
        monkeypatch.setattr(hardware, "CGROUP", str(tmp_path))
        everything = available_memory()
        (tmp_path / "memory.max").write_text("max\n")
        (tmp_path / "memory.current").write_text(f"{80 << 20}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\nactive_file {10 << 20}\ninactive_file 0\n")
        assert available_memory() > everything / 2
        (tmp_path / "memory.max").write_text(f"{100 << 20}\n")
        assert available_memory() == 30 << 20

    def test_one_that_is_killed_ran_out_of_memory(self):
        killed = subprocess.run(["sh", "-c", "kill -9 $$"], check=False)
        assert fatal(killed.returncode)[0] == "out of memory"
        assert fatal(1)[0] == "not available"


def series(*points: Point) -> Series:
    return Series(AXIS, "published eager", list(points), 1 << 30)


def timed(value: int, seconds: float, extra_bytes: int | None) -> Point:
    return Point(value, Spread(seconds, seconds, seconds), 7, extra_bytes)


POINTS = (timed(128, 0.1, 1 << 20), timed(256, 0.2, 1 << 21), timed(512, 0.4, 1 << 22))


def test_a_record_gives_its_series_back():
    for one in (series(*POINTS), series(*POINTS[:1], Point(256, outcome="out of memory"))):
        assert scaling.from_record(json.loads(json.dumps(one.as_record()))) == one


def test_exponents_of_a_series():
    one = series(*POINTS)
    assert one.time.exponent == pytest.approx(1)
    assert one.memory.exponent == pytest.approx(1)
    assert series(*POINTS[:2], Point(512, outcome="out of memory")).time is None


def test_memory_below_what_can_be_seen_is_flat():
    few = [
        replace(point, extra_bytes=size)
        for point, size in zip(POINTS, (0, 900, 70000), strict=True)
    ]
    assert series(*few).memory.exponent == pytest.approx(0)


def test_where_memory_ran_out_is_in_the_table():
    grown = series(*POINTS, Point(1024, outcome="out of memory", reason="much"))
    machine = {"before": {"mm_gflops": {"float32": 1.0}, "copy_gbytes_per_second": 1e3}}
    of_series = [json.loads(json.dumps(grown.as_record()))]
    text = part_tables.scaling_table({"scaling": of_series, "machine": machine})
    assert "K = 512, out of memory at 1024" in text
    assert "K^1.00 (±0%)" in text
    record = {"scaling": of_series, "machine": machine}
    assert part_tables.points_table(record).splitlines()[-1] == (
        "| float32 16×512 | 400 [400–400] (2%; 7; 4.00) |"
    )
    ended = series(*POINTS[:2], Point(512, outcome="out of memory", reason="much"))
    record["scaling"] = [json.loads(json.dumps(ended.as_record()))]
    assert part_tables.points_table(record).splitlines()[-1] == (
        "| float32 16×512 | out of memory |"
    )
    # 8·16·128·512 operations at 1e9 a second take 8.4 of the 400 ms.
    assert "2% (compute)" in text
    assert f"{CPU_UNITS.per_second * 0.4:.0f}" in text


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_axes_can_be_enqueued_by_every_implementation(device_type):
    """The published code wants a batch that divides the memory."""
    for axis in axes_for(torch.device(device_type)):
        assert all(case.rows % case.batch == 0 for case in axis.cases)
