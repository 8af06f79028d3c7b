"""Copies of a memory take turns, so many that no cache holds one until its next turn."""

import functools

import pytest
import torch

from benchmarks import breakdown, hardware, run, scaling, turns
from benchmarks.cases import Axis, Case, DrawCase, MomentumCase
from benchmarks.implementations import implementations
from benchmarks.inputs import draw
from benchmarks.momentum import FusedMomentum, PublishedMomentum
from benchmarks.negatives import Sampler
from benchmarks.peers import Compiled, Fused, PublishedEager
from benchmarks.turns import copies_wanted, one_by_one, with_twins

CPU = torch.device("cpu")
#: 32 KiB of memory, and a pointer.
CASE = Case(16, 64, "float32")
BYTES = 64 * 128 * 4 + 8
MOMENTUM = MomentumCase(8, 64, "float32", n_data=500)


@pytest.mark.parametrize(
    ("memory", "cache", "copies"),
    [
        (8, 32, 5),  # four others, 32 bytes, between two uses
        (7, 32, 6),  # four others would be 28
        (32, 32, 2),
        (33, 32, 2),  # a part of it may stay
        (63, 32, 2),
        (64, 32, 1),  # it pushes itself out
        (0, 32, 1),
        (8, None, 1),
        (1, 1 << 20, 64),  # more would be over the limit of copies
        (1 << 28, 1 << 40, 4),  # more would be over the limit of bytes
        (1 << 31, 1 << 32, 1),
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


@pytest.mark.parametrize("kinds", [[PublishedEager, Fused], [PublishedMomentum, FusedMomentum]])
def test_every_copy_is_used_in_turn_and_advances(kinds, device):
    case = MOMENTUM if kinds[1] is FusedMomentum else CASE
    for kind in kinds:
        wrapped, calls = counting(kind)
        state, batches = draw(case, device)
        steps = with_twins(wrapped(case, state), 2 * wrapped(case, state).memory_bytes)
        before = [step.state[0].clone() for step in steps]
        call = one_by_one(turns.turns(steps, batches))
        for _ in range(24):
            call()
        memories, embeddings = zip(*calls, strict=True)
        assert len(steps) == len(set(memories)) == 3
        assert memories == memories[:3] * 8  # never the same one until the others were
        assert len(set(embeddings)) == len(batches)
        assert len(set(calls[:12])) == 12
        for step, start in zip(steps, before, strict=True):
            assert not torch.equal(step.state[0], start)
            if case is CASE:
                assert step.pointer.item() == 8 * case.batch % case.rows


def test_twins_are_compiled_once(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    state, batches = draw(CASE, CPU)
    steps = with_twins(Compiled(CASE, state), 2 * BYTES)
    steps[0](*batches[0])
    steps[0].write(*batches[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for call in turns.turns(steps, batches):
            call()
        for step in steps:
            step.write(*batches[0])
    assert [step.pointer.item() for step in steps] == [
        (count * CASE.batch) % CASE.rows for count in (1 + 1 + 4 + 1, 4 + 1, 4 + 1)
    ]


@pytest.mark.parametrize(("cache", "copies"), [(2 * BYTES, 3), (BYTES // 2, 1), (None, 1)])
def test_what_is_timed_takes_turns_and_says_so(cache, copies, device, monkeypatch):
    monkeypatch.setattr(hardware, "cache_bytes", lambda device: cache)
    kind, calls = counting(Fused)
    monkeypatch.setattr(run, "implementations", lambda case, device: [kind])
    [row] = run.run_case(CASE, 0.0, device, memory=False)
    assert row.copies == copies
    assert len({memory for memory, _ in calls}) == copies

    calls.clear()
    axis = Axis("rows", CASE, (64,))
    [point] = scaling.measure(kind, axis, device, 0.0)
    assert point.copies == copies
    assert len({memory for memory, _ in calls}) == copies

    calls.clear()
    monkeypatch.setattr(breakdown, "implementations", lambda case, device: [kind])
    [found] = breakdown.breakdowns(CASE, device, 3)
    assert found.parts
    assert found.copies == copies
    assert len({memory for memory, _ in calls}) == copies


def test_draws_have_no_memory_to_copy():
    case = DrawCase(8, 64, n_data=500)
    state, _ = draw(case, CPU)
    assert len(with_twins(Sampler(case, state), 1 << 20)) == 1


def test_all_implementations_of_a_case_have_as_many_copies(device):
    for case in (CASE, MOMENTUM):
        state, _ = draw(case, device)
        sizes = {kind(case, state).memory_bytes for kind in implementations(case, device)}
        assert len(sizes) == 1


class TestCache:
    def cores(self, folder, *last):
        """Cores of their own first caches; the last ones are shared as ``last`` says."""
        for cpu, shared in enumerate(last):
            caches = (("1", "Data", "32K", str(cpu)), ("1", "Instruction", "64K", str(cpu)))
            for number, cache in enumerate((*caches, ("3", "Unified", "1024K", shared))):
                index = folder / f"cpu{cpu}" / "cache" / f"index{number}"
                index.mkdir(parents=True)
                names = ("level", "type", "size", "shared_cpu_list")
                for name, text in zip(names, cache, strict=True):
                    (index / name).write_text(f"{text}\n")

    def test_each_cluster_counts_once(self, tmp_path, monkeypatch):
        self.cores(tmp_path, "0-1", "0-1", "2-3", "2-3")
        monkeypatch.setattr(hardware, "CPUS", str(tmp_path))
        for cores, size in (({0, 1}, 1 << 20), ({1, 2, 3}, 2 << 20)):
            monkeypatch.setattr(
                hardware.os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False
            )
            assert hardware.cache_bytes(CPU) == size

    def test_where_it_is_not_said(self, tmp_path, monkeypatch):
        monkeypatch.setattr(hardware, "CPUS", str(tmp_path))
        assert hardware.cache_bytes(CPU) is None
