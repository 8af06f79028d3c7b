"""What is timed takes turns, memory is what was allocated, and what fails is an outcome."""

import itertools
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import forked
import pytest
import torch

from benchmarks.cases.sizes import Case
from benchmarks.implementations import implementations
from benchmarks.implementations.fifo import Fused, PublishedEager
from benchmarks.measuring import clocks, growth, hardware
from benchmarks.measuring.clocks import interleaved, one_by_one, spread, turns, with_twins
from benchmarks.measuring.memory import CLEAR_REFS, isolated, limit_memory, peak_extra_memory
from benchmarks.measuring.run import beside_busy, run_case, timing

CPU = torch.device("cpu")
#: 32 KiB of memory, and a pointer.
CASE = Case(16, 64, "float32")
BYTES = 64 * 128 * 4 + 8
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
    monkeypatch.setattr(clocks, "LONG_SECONDS", 0)  # the first counts
    count = itertools.count()
    assert interleaved({"a": lambda: float(next(count))}, 0.0)["a"] == [0.0, 1.0, 2.0]


def test_spread_and_ratio_are_of_the_rounds():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == {"median": 3.5, "p20": 2.0, "p80": 5.0}
    assert spread([2.0]) == {"median": 2.0, "p20": 2.0, "p80": 2.0}
    assert timing([2.0, 30.0, 4.0], [1.0, 10.0, 1.0])["times_ours"] == 3.0


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
    step = SimpleNamespace(state=[torch.empty(memory, dtype=torch.uint8)], twin=lambda: None)
    assert len(with_twins(step, cache)) == copies


def test_calls_and_batches_take_turns():
    first, second = (lambda batch, name=name: f"{name}{batch}" for name in "ab")
    call = one_by_one(turns([first, second], [(1,), (2,), (3,)]))
    assert " ".join(call() for _ in range(8)) == "a1 b2 a3 b1 a2 b3 a1 b2"


@pytest.mark.parametrize(("cache", "copies"), [(2 * BYTES, 3), (BYTES // 2, 1), (None, 1)])
def test_what_is_timed_takes_turns_and_says_so(cache, copies, device, monkeypatch):
    monkeypatch.setattr(hardware, "cache_bytes", lambda device: cache)
    memories = set()

    class Counting(Fused):
        def __call__(self, z_s, z_t):
            memories.add(self.memory.data_ptr())
            return super().__call__(z_s, z_t)

    rows = run_case(CASE, [Counting], 0.0, device, memory=False)
    assert [row["copies"] for row in rows if row["figure"] == "step"] == [copies]
    assert len(memories) == copies
    memories.clear()
    assert growth.measure(CASE, Counting, device)["copies"] == len(memories) == copies


def test_the_last_cache_of_each_cluster_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "CPUS", str(tmp_path))
    assert hardware.cache_bytes(CPU) is None  # where it is not said
    for cpu, shared in enumerate(("0-1", "0-1", "2-3", "2-3")):
        for level, size, own in (("1", "32K", str(cpu)), ("3", "1024K", shared)):
            index = tmp_path / f"cpu{cpu}" / "cache" / f"index{level}"
            index.mkdir(parents=True)
            fields = {"level": level, "type": "Unified", "size": size, "shared_cpu_list": own}
            for name, text in fields.items():
                (index / name).write_text(f"{text}\n")
    for cores, size in (({0, 1}, 1 << 20), ({1, 2, 3}, 2 << 20)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False)
        assert hardware.cache_bytes(CPU) == size


def known_allocation():
    def call():
        torch.ones(1 << 24)  # 64 MiB, gone at once
        torch.ones(1 << 23)

    print(peak_extra_memory(call))


@needs_counts
def test_the_peak_of_a_known_allocation():
    """In a process where nothing else has allocated, as all that is measured is."""
    done = forked.run(known_allocation)
    assert done.returncode == 0, done.stderr
    assert abs(int(done.stdout) / 2**20 - 64) < 8


class TooLarge(Fused):
    name = "too large"

    def __call__(self, z_s, z_t):
        return torch.empty(2**60)


class Fails(Fused):
    """For want of memory, after the check and the first rounds."""

    name = "fails"
    calls = 0

    def __call__(self, z_s, z_t):
        type(self).calls += 1
        if self.calls > 3:
            raise torch.OutOfMemoryError("tried to allocate much\nand more")
        return super().__call__(z_s, z_t)


@pytest.mark.parametrize("kind", [TooLarge, Fails])
def test_what_fails_is_an_outcome_and_the_others_are_timed(kind):
    rows = run_case(CASE, [PublishedEager, kind, Fused], 0.0, memory=False)
    [failed] = [row for row in rows if row["implementation"] == kind.name]
    assert failed["outcome"] == "out of memory"
    assert "median" not in failed
    assert "\n" not in failed["reason"]
    timed = {row["implementation"] for row in rows if row.get("median", 0) > 0}
    assert timed == {PublishedEager.name, Fused.name}


def test_every_figure_of_a_case(device):
    kinds = implementations(CASE, device, compiled=False)
    rows = run_case(CASE, kinds, 0.0, device, memory=False)
    figures = {}
    for row in rows:
        assert row["median"] > 0, row
        assert row["p20"] <= row["median"] <= row["p80"]
        figures.setdefault(row["implementation"], set()).add(row["figure"])
        if row["implementation"] == Fused.name:
            assert row["times_ours"] == 1
    assert list(figures) == [kind.name for kind in kinds]
    graph = {"step in a graph"} if device.type == "cuda" else set()
    assert figures[Fused.name] == figures["SDPA math"] == {"step"} | graph


def test_a_step_beside_busy_processes(monkeypatch):
    started, seen = [], []

    class Started(subprocess.Popen):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            started.append(self)

    class Counted(Fused):
        def __call__(self, *batch):
            running = sum(process.poll() is None for process in started)
            seen.append((self.name, torch.get_num_threads(), running))
            return super().__call__(*batch)

    monkeypatch.setattr(subprocess, "Popen", Started)
    before = torch.get_num_threads()
    rows = list(beside_busy(CASE, [PublishedEager, Counted], 0.0))
    names = [PublishedEager.name, Fused.name, f"{Fused.name} on one thread"]
    for figure in ("alone", f"beside {before} busy processes"):
        timed = [row for row in rows if row["figure"] == figure and row["median"] > 0]
        assert [row["implementation"] for row in timed] == names
    expected = {
        (name, count, others)
        for name, count in ((names[1], before), (names[2], 1))
        for others in (0, before)
    }
    assert set(seen) == expected
    assert torch.get_num_threads() == before
    assert all(process.returncode is not None for process in started)


def dies(how):
    limit_memory(1 << 30)
    if how == "allocates":
        torch.empty(2**33)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


DIES = {"allocates": "out of memory", "is killed": "out of memory", "exits": "not available"}


@needs_counts
@pytest.mark.parametrize(("how", "outcome"), DIES.items())
def test_a_process_that_fails_is_an_outcome(how, outcome):
    assert isolated(dies, how)["outcome"] == outcome


@needs_counts
def test_growth_ends_where_memory_does(monkeypatch):
    monkeypatch.setattr(hardware, "available_memory", lambda: 600 << 20)
    cases = [Case(1024, rows, "float32", dim=8) for rows in (1024, 1 << 18)]
    first, last = growth.rows_along("K", cases, PublishedEager, CPU)
    assert first["median"] > 0
    assert (last["K"], last["outcome"]) == (1 << 18, "out of memory")
    assert 1 <= first["rounds"] <= clocks.ROUNDS
