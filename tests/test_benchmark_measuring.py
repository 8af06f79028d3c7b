"""What is timed takes turns, memory is what was allocated, and what fails is an outcome."""

import itertools
import os
import time

import pytest
import torch

from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import Axis, Case, MomentumCase
from benchmarks.implementations import COMPILED, implementations
from benchmarks.implementations.fifo import Fused, PublishedEager
from benchmarks.implementations.momentum import FusedMomentum
from benchmarks.measuring import clocks, growth, hardware, run
from benchmarks.measuring.clocks import Spread, interleaved, median_ratio
from benchmarks.measuring.memory import CLEAR_REFS, isolated, limit_memory, peak_extra_memory
from benchmarks.measuring.run import run_case
from benchmarks.measuring.turns import copies_wanted, one_by_one, turns, with_twins

CPU = torch.device("cpu")
#: 32 KiB of memory, and a pointer.
CASE = Case(16, 64, "float32")
BYTES = 64 * 128 * 4 + 8
MOMENTUM = MomentumCase(8, 64, "float32", n_data=500)
needs_counts = pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system counts no memory")


def test_each_call_comes_after_each():
    order = []
    timers = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    times = interleaved(timers, 0.0, min_rounds=4)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert times["a"] == [4.0, 9.0, 11.0, 13.0]  # the warm-up does not count


def test_rounds_end_by_count_time_and_limit(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    for seconds, limit, rounds in ((0, 100, 7), (20, 100, 20), (0, 4, 5), (0, 0, 3)):
        monkeypatch.setattr(clocks, "LIMIT_SECONDS", limit)
        assert len(interleaved({"a": lambda: 1.0}, seconds)["a"]) == rounds


def test_spread_and_ratio_are_of_the_rounds():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)
    assert median_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == 3.0


@pytest.mark.parametrize(
    ("memory", "cache", "copies"),
    [
        (8, 32, 5),  # four others, 32 bytes, between two uses
        (7, 32, 6),  # four others would be 28
        (33, 32, 2),  # a part of it may stay
        (64, 32, 1),  # it pushes itself out
        (8, None, 1),
        (1, 1 << 20, 64),  # more would be over the limit
    ],
)
def test_the_copies_fill_the_cache_between_two_uses(memory, cache, copies):
    assert copies_wanted(memory, cache) == copies


def counting(kind):
    """``kind``, and each of its calls: which memory, and which z_s."""
    calls = []

    class Counting(kind):
        def __call__(self, z_s, *rest):
            calls.append((self.state[0].data_ptr(), z_s.data_ptr()))
            return super().__call__(z_s, *rest)

    return Counting, calls


@pytest.mark.parametrize(("case", "kind"), [(CASE, Fused), (MOMENTUM, FusedMomentum)])
def test_every_copy_and_every_batch_is_used_in_turn(case, kind, device):
    wrapped, calls = counting(kind)
    state, batches = draw(case, device)
    steps = with_twins(wrapped(case, state), 2 * wrapped(case, state).memory_bytes)
    before = [step.state[0].clone() for step in steps]
    call = one_by_one(turns(steps, batches))
    for _ in range(24):
        call()
    memories, embeddings = zip(*calls, strict=True)
    assert len(steps) == len(set(memories)) == 3
    assert memories == memories[:3] * 8  # never the same one until the others were
    assert len(set(embeddings)) == len(batches)
    assert not any(map(torch.equal, [step.state[0] for step in steps], before))


@pytest.mark.parametrize(("cache", "copies"), [(2 * BYTES, 3), (BYTES // 2, 1), (None, 1)])
def test_what_is_timed_takes_turns_and_says_so(cache, copies, device, monkeypatch):
    monkeypatch.setattr(hardware, "cache_bytes", lambda device: cache)
    kind, calls = counting(Fused)
    monkeypatch.setattr(run, "implementations", lambda case, device: [kind])
    rows = run_case(CASE, 0.0, device, memory=False)
    assert [row["copies"] for row in rows if row["figure"] == "step"] == [copies]
    assert len({memory for memory, _ in calls}) == copies
    calls.clear()
    point = growth.measure(CASE, kind, device)
    assert point["copies"] == len({memory for memory, _ in calls}) == copies


class TestCache:
    def test_each_cluster_counts_once(self, tmp_path, monkeypatch):
        for cpu, shared in enumerate(("0-1", "0-1", "2-3", "2-3")):
            caches = (("1", "Data", "32K", str(cpu)), ("3", "Unified", "1024K", shared))
            for number, cache in enumerate(caches):
                index = tmp_path / f"cpu{cpu}" / "cache" / f"index{number}"
                index.mkdir(parents=True)
                names = ("level", "type", "size", "shared_cpu_list")
                for name, text in zip(names, cache, strict=True):
                    (index / name).write_text(f"{text}\n")
        monkeypatch.setattr(hardware, "CPUS", str(tmp_path))
        for cores, size in (({0, 1}, 1 << 20), ({1, 2, 3}, 2 << 20)):
            own = hardware.os, "sched_getaffinity", lambda _, cores=cores: cores
            monkeypatch.setattr(*own, raising=False)
            assert hardware.cache_bytes(CPU) == size

    def test_where_it_is_not_said(self, tmp_path, monkeypatch):
        monkeypatch.setattr(hardware, "CPUS", str(tmp_path))
        assert hardware.cache_bytes(CPU) is None


@needs_counts
def test_the_peak_of_a_known_allocation():
    def call():
        torch.ones(1 << 24)  # 64 MiB, gone at once
        torch.ones(1 << 23)

    assert abs(peak_extra_memory(call) / 2**20 - 64) < 8


class TooLarge(Fused):
    name = "too large"

    def __call__(self, z_s, z_t):
        return torch.empty(2**60)


def fails_at(count):
    class Fails(Fused):
        """For want of memory, that many calls after the check."""

        name = "fails"
        left = count

        def __call__(self, z_s, z_t):
            type(self).left -= 1
            if type(self).left < 0:
                raise torch.OutOfMemoryError("tried to allocate much\nand more")
            return super().__call__(z_s, z_t)

    return Fails


@pytest.mark.parametrize("kind", [TooLarge, fails_at(0), fails_at(3)])
def test_what_fails_is_an_outcome_and_the_others_are_timed(kind, monkeypatch):
    kinds = [PublishedEager, kind, Fused]
    monkeypatch.setattr(run, "implementations", lambda case, device: kinds)
    rows = run_case(CASE, 0.0, memory=False)
    [failed] = [row for row in rows if row["implementation"] == kind.name]
    assert failed["outcome"] == "out of memory"
    assert "median" not in failed
    assert "\n" not in failed["reason"]
    timed = {row["implementation"] for row in rows if row.get("median", 0) > 0}
    assert timed == {PublishedEager.name, Fused.name}


def test_every_figure_of_a_case(device):
    rows = run_case(CASE, 0.0, device, memory=False, without=COMPILED)
    figures = {}
    for row in rows:
        assert row["median"] > 0, row
        assert row["p20"] <= row["median"] <= row["p80"]
        figures.setdefault(row["implementation"], set()).add(row["figure"])
        if row["implementation"] == Fused.name:
            assert row["times_ours"] == 1
    assert list(figures) == [
        kind.name for kind in implementations(CASE, device) if kind not in COMPILED
    ]
    graph = {"step in a graph"} if device.type == "cuda" else set()
    assert figures[Fused.name] == {"step", "forward", "backward", "enqueue"} | graph
    assert figures["SDPA math"] == {"step", "enqueue"} | graph


def dies(how):
    limit_memory(1 << 30)
    if how == "allocates":
        torch.empty(2**33)
    os._exit(3)


@needs_counts
@pytest.mark.parametrize(
    ("how", "outcome"), [("allocates", "out of memory"), ("exits", "not available")]
)
def test_a_process_that_fails_is_an_outcome(how, outcome):
    assert isolated(dies, how)["outcome"] == outcome


@needs_counts
def test_growth_ends_where_memory_does(monkeypatch):
    monkeypatch.setattr(hardware, "available_memory", lambda: 600 << 20)
    axis = Axis("rows", Case(1024, 0, "float32", dim=8), (1024, 1 << 18))
    first, last = growth.rows_along(axis, PublishedEager, CPU)
    assert first["median"] > 0
    assert (last["K"], last["outcome"]) == (1 << 18, "out of memory")
    assert 1 <= first["rounds"] <= clocks.ROUNDS
