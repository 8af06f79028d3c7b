"""gpu_correctness.py finds what is wrong, whatever is: with cases on a CPU."""

import json
import math
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import gpu_cases
import gpu_correctness
import pytest
import stand_in_gpu
import torch
import whole_step
from gpu_cases import Sizes
from gpu_correctness import Job, attempt, check, repeated, what_is_wrong
from problems import FORMS, Problem


def case(fused, bound=1e-3):
    """Of ``fused(drawn)``, which is to double what is drawn."""
    return SimpleNamespace(
        draw=lambda: torch.randn(100),
        fused=lambda drawn: {"output": fused(drawn)},
        exact=lambda drawn: {"output": 2 * drawn},
        bounds=lambda drawn, exact: {"output": bound},
    )


def entry_of(fused, count=4):
    return attempt(Job("", partial(repeated, case(fused))), count)


def test_what_is_right():
    entry = entry_of(lambda drawn: 2 * drawn)
    assert not what_is_wrong(entry)
    assert entry["repeats"] == 4
    assert entry["errors"]["output"] == {"median": 0.0, "worst": 0.0, "bound": 1e-3}


def test_an_error_is_relative_to_the_norm():
    error = entry_of(lambda drawn: 2.02 * drawn)["errors"]["output"]
    assert error["median"] == pytest.approx(0.01, rel=1e-3)


def unwritten(drawn):
    found = torch.empty(100)
    found[:99] = 2 * drawn[:99]
    return found


def seldom(drawn):
    seldom.calls += 1
    return 2 * drawn * (1 + 1e-6 * (seldom.calls == 5))


seldom.calls = 0


@pytest.mark.parametrize(
    ("fused", "found"),
    [
        (lambda drawn: 2.02 * drawn, "output is off by"),
        (lambda drawn: torch.full((100,), math.nan), "output is off by inf"),
        (unwritten, "output is off by inf"),  # NaN is what is not written
        (seldom, "bits moved in 1 of 4"),
        (lambda drawn: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_named(fused, found):
    assert any(text.startswith(found) for text in what_is_wrong(entry_of(fused)))


def test_a_few_repetitions_of_all_come_before_the_rest_of_any():
    order = []

    def job(name):
        def repeat(count):
            order.append((name, count))
            return {"repeats": count, "moved": int(count == 2), "errors": {}}

        return Job(name, repeat)

    entries, saved = {}, []
    work = [job("a"), job("b")]
    assert check(work, entries, (2, 10), math.inf, lambda *entry: saved.append(entry))
    assert order == [("a", 2), ("b", 2), ("a", 8), ("b", 8)]
    assert entries["a"]["repeats"] == 10
    assert entries["a"]["moved"] == 1  # of the first repetitions, which the later do not hide
    assert len(saved) == 4


def test_no_case_begins_after_the_time():
    entries = {}
    check([Job("a", lambda count: {})], entries, (1,), time.monotonic() - 1, print)
    assert not entries


def test_what_follows_a_lost_device_is_left_to_another_process(tmp_path, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def wrong(count):
        lost()

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    path = tmp_path / "entries"
    right = partial(repeated, case(lambda drawn: 2 * drawn))
    work = [Job("wrong", wrong), Job("right", right)]

    def save(name, entry):
        with open(path, "a") as file:
            file.write(json.dumps({"name": name, **entry}) + "\n")

    assert not check(work, {}, (1,), math.inf, save)
    with open(path, "a") as file:
        file.write('{"name": "cut sh')
    entries = gpu_correctness.read(path)
    assert entries["wrong"]["failed"].startswith("RuntimeError: CUDA error")
    assert check(work, entries, (1,), math.inf, save)
    assert entries["right"]["repeats"] == 1
    assert "right" in gpu_correctness.table(entries)


def test_every_case_has_a_name_of_its_own():
    names = [job.name for job in gpu_correctness.jobs(Sizes())]
    assert len(set(names)) == len(names)


def test_sizes_are_on_either_side_of_the_table_s_bound():
    from rrd_kernels.triton.cards import LARGE

    sizes = Sizes()
    assert 2 * math.prod(sizes.small) < LARGE <= 2 * math.prod(sizes.large)


@pytest.fixture
def gpu():
    with stand_in_gpu.in_place():
        yield


@pytest.mark.usefixtures("gpu")
def test_what_a_graph_is_replayed_on():
    """Every tensor that a case draws, and nothing else."""
    for case in gpu_cases.watched_cases(gpu_cases.QUICK):
        found = gpu_correctness.tensors(case.draw())
        assert len(found) in (3, 4, 6)
        assert all(isinstance(one, torch.Tensor) for one in found)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("precision", gpu_cases.OPERANDS)
@pytest.mark.parametrize(
    ("mistake", "form"),
    [
        *((mistake, "cross-entropy") for mistake in ("tile", "temperature", "gradient")),
        *(("form", form) for form in FORMS if form != "cross-entropy"),
        ("gradient", "hard target"),
        ("temperature", "own pair, kl"),
    ],
)
def test_the_bounds_see_mistakes(mistake, form, precision):
    """A tile of 64 rows left out, a temperature or a gradient off by a tenth, another form."""
    right = gpu_cases.Loss(precision, 128, 16, 2048, unit=True, form=form)

    def fused(drawn):
        if mistake == "tile":
            drawn = replace(drawn, memory=drawn.memory[:-64])
        if mistake == "temperature":
            drawn = replace(drawn, tau_t=1.1 * drawn.tau_t)
        if mistake == "form":
            drawn = Problem(drawn.z_s, drawn.z_t, drawn.memory)
        found = right.fused(drawn)
        return found | {"gradient": 1.1 * found["gradient"]} if mistake == "gradient" else found

    wrong = SimpleNamespace(**{name: getattr(right, name) for name in ("draw", "exact", "bounds")})
    wrong.fused = fused
    assert not what_is_wrong(attempt(Job("", partial(repeated, right)), 1))
    assert what_is_wrong(attempt(Job("", partial(repeated, wrong)), 1))


@pytest.mark.usefixtures("gpu")
def test_a_whole_step_that_misses_something_has_moved(monkeypatch):
    assert whole_step.in_a_graph(3) == {"repeats": 3, "moved": 0}
    # Of the first learning rate, where the last replay has another.
    monkeypatch.setattr(whole_step.GraphedStep, "_settings", lambda self: [])
    assert whole_step.in_a_graph(3) == {"repeats": 3, "moved": 1}
