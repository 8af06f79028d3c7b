"""The benchmark measures what it says, and nothing that is wrong."""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import run, targets
from benchmarks.agreement import agreement
from benchmarks.cases import (
    CPU_CASES,
    CUDA_CASES,
    Case,
    DrawCase,
    MomentumCase,
    cases_for,
    from_fields,
)
from benchmarks.implementations import COMPILED, implementations
from benchmarks.inputs import draw
from benchmarks.measure import CLEAR_REFS
from benchmarks.momentum import FusedMomentum, PublishedMomentum
from benchmarks.negatives import PublishedLoader, Sampler
from benchmarks.peers import Fused, PublishedEager
from benchmarks.run import Absent, Row, run_case
from rrd_kernels import functional
from rrd_kernels.functional import relational_loss

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SMALL = Case(16, 512, "float32")
FORMATS = [
    SMALL,
    replace(SMALL, matmul_precision="high"),
    replace(SMALL, dtype_name="bfloat16"),
    replace(SMALL, dtype_name="float16"),
]
MOMENTUM = MomentumCase(8, 64, "float32", n_data=500)
DRAWS = DrawCase(8, 64, n_data=500)


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.format)
def test_every_implementation_agrees_before_it_is_timed(case, device):
    results = run_case(case, 0.0, device, memory=device.type == "cuda", without=COMPILED)
    assert [result.implementation for result in results] == [
        kind.name for kind in implementations(case, device) if kind not in COMPILED
    ]
    if device.type == "cpu":  # a GPU may lack some of PyTorch's kernels
        assert all(isinstance(result, Row) for result in results)
    ours = results[-1]
    assert isinstance(ours, Row), ours
    assert ours.seconds.median > 0
    assert ours.not_captured is None
    assert bool(ours.replay) == (device.type == "cuda")


@pytest.fixture
def aot_eager(monkeypatch):
    """Inductor takes seconds for what is seen here: the writes in a graph, the numbers."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize("case", [*FORMATS, MOMENTUM], ids=lambda case: case.name)
def test_what_is_compiled_agrees(case, device):
    state, batches = draw(case, device)
    judge = agreement(case, state, batches[0])
    published, step, *_ = (kind(case, state) for kind in implementations(case, device))
    assert type(step) in COMPILED
    for one in (published, step):
        judge.check(one)
    assert torch.equal(step.state[0], published.state[0])
    assert torch.equal(step.state[1], published.state[1])


def test_what_is_compiled_is_compiled_at_every_size():
    for case in (*CPU_CASES, *CUDA_CASES):
        kinds = implementations(case, torch.device("cuda" if case in CUDA_CASES else "cpu"))
        compiled = [kind for kind in kinds if kind in COMPILED]
        assert len(compiled) == (0 if isinstance(case, DrawCase) else 1)
        assert not any(kind.why_not(case) for kind in compiled)


class OffByAThousandth(Fused):
    def __call__(self, z_s, z_t):
        loss, grad = super().__call__(z_s, z_t)
        return 1.001 * loss, grad


class WithoutEnqueue(Fused):
    def __call__(self, z_s, z_t):
        before = self.memory.clone()
        super().__call__(z_s, z_t)
        self.memory.copy_(before)
        z_s = z_s.detach().requires_grad_()
        loss = relational_loss(z_s, z_t, self.memory, tau_s=self.tau_s, tau_t=self.tau_t)
        return loss.detach(), torch.autograd.grad(loss, z_s)[0]


class TooLarge(Fused):
    def __call__(self, z_s, z_t):
        raise torch.OutOfMemoryError("tried to allocate much\nand more")


class TooLargeForTheSystem(Fused):
    def __call__(self, z_s, z_t):
        return torch.empty(2**60)


@pytest.mark.parametrize(
    ("wrong", "outcome", "reason"),
    [
        (OffByAThousandth, "disagrees", "ArithmeticError"),
        (WithoutEnqueue, "disagrees", "ArithmeticError"),
        (TooLarge, "out of memory", "tried to allocate much"),
        (TooLargeForTheSystem, "out of memory", "allocate"),
    ],
)
def test_a_wrong_implementation_is_not_timed_but_the_others_are(
    wrong, outcome, reason, monkeypatch
):
    monkeypatch.setattr(run, "implementations", lambda case, device: [PublishedEager, wrong])
    published, ours = run_case(SMALL, 0.0, memory=False)
    assert isinstance(published, Row)
    assert isinstance(ours, Absent)
    assert ours.outcome == outcome
    assert reason in ours.reason
    assert "\n" not in ours.reason


class IsKilled(Fused):
    """In the process that measures memory, as by a system that has none left."""

    def __call__(self, z_s, z_t):
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(z_s, z_t)


class FailsToAllocate(Fused):
    def __call__(self, z_s, z_t):
        if multiprocessing.parent_process():
            torch.empty(2**60)
        return super().__call__(z_s, z_t)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system does not count memory")
def test_memory_that_cannot_be_measured_is_an_outcome(monkeypatch, capsys):
    kinds = [PublishedEager, IsKilled, FailsToAllocate]
    monkeypatch.setattr(run, "implementations", lambda case, device: kinds)
    monkeypatch.setattr(IsKilled, "name", "killed")
    monkeypatch.setattr(FailsToAllocate, "name", "failing")
    published, killed, failing = run_case(SMALL, 0.0)
    assert published.extra_bytes is not None
    assert published.no_memory is None
    for row in (killed, failing):
        assert row.seconds.median > 0
        assert row.extra_bytes is None
        assert row.no_memory.startswith("out of memory: ")
    table = pytest.importorskip("benchmarks.table")
    table.print_table([published, killed, failing])
    assert "killed memory, out of memory: the system ended" in capsys.readouterr().out


def test_the_momentum_memory_is_measured():
    memory = CLEAR_REFS.exists()
    results = run_case(MOMENTUM, 0.0, memory=memory, without=COMPILED)
    assert [result.implementation for result in results] == ["published eager", "rrd_kernels"]
    for result in results:
        assert isinstance(result, Row), result
        assert result.errors.memory < 1e-6
        assert not memory or result.extra_bytes is not None


@pytest.mark.parametrize("method", ["dense", "gather"])
def test_the_momentum_memory_agrees_either_way(method, device, monkeypatch):
    loss = functools.partial(functional.sampled_relational_loss, method=method)
    monkeypatch.setattr(functional, "sampled_relational_loss", loss)
    state, batches = draw(MOMENTUM, device)
    judge = agreement(MOMENTUM, state, batches[0])
    for kind in (PublishedMomentum, FusedMomentum):
        judge.check(kind(MOMENTUM, state))


class AnotherGradient(FusedMomentum):
    def __call__(self, *batch):
        loss, grad = super().__call__(*batch)
        return loss, 1.001 * grad


class AnotherLoss(PublishedMomentum):
    def __call__(self, *batch):
        loss, grad = super().__call__(*batch)
        return 1.00001 * loss, grad


class SwappedNormalizers(PublishedMomentum):
    def __call__(self, *batch):
        self.params[2:4] = self.params[2:4].flip(0)
        return super().__call__(*batch)


class WithoutUpdate(FusedMomentum):
    def __call__(self, *batch):
        before = self.memory_v2.clone()
        result = super().__call__(*batch)
        self.memory_v2.copy_(before)
        return result


class StrayWrite(FusedMomentum):
    def __call__(self, z_s, z_t, idx, contrast_idx):
        result = super().__call__(z_s, z_t, idx, contrast_idx)
        self.memory_v1[(idx[0] + 1) % len(self.memory_v1)] += 1e-3
        return result


@pytest.mark.parametrize(
    "wrong", [AnotherGradient, AnotherLoss, SwappedNormalizers, WithoutUpdate, StrayWrite]
)
def test_a_wrong_step_of_the_momentum_memory_is_not_timed_but_the_other_is(wrong, monkeypatch):
    kinds = [PublishedMomentum, FusedMomentum]
    replaced = [wrong if issubclass(wrong, kind) else kind for kind in kinds]
    monkeypatch.setattr(run, "implementations", lambda case, device: replaced)
    results = run_case(MOMENTUM, 0.0, memory=False)
    for kind, result in zip(replaced, results, strict=True):
        assert isinstance(result, Absent if kind is wrong else Row), result
        assert kind is not wrong or "ArithmeticError" in result.reason


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize("case", [*FORMATS, MOMENTUM], ids=lambda case: case.name)
def test_what_is_written_alone_agrees(case, device):
    state, batches = draw(case, device)
    judge = agreement(case, state, batches[0])
    for kind in implementations(case, device):
        if not kind.why_not(case):
            judge.check_write(kind(case, state))


class WritesRaw(Fused):
    def write(self, z_s, z_t):
        super().write(z_s, z_t)
        self.memory[: len(z_t)] = z_t


class LeavesThePointer(Fused):
    def write(self, z_s, z_t):
        super().write(z_s, z_t)
        self.pointer.zero_()


class WritesElsewhere(Fused):
    def write(self, z_s, z_t):
        super().write(z_s, z_t)
        self.memory[-1] *= 1.001


class MovesTheWrongRows(FusedMomentum):
    def write(self, z_s, z_t, idx, contrast_idx):
        super().write(z_s, z_t, idx.flip(0), contrast_idx)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (SMALL, WritesRaw),
        (SMALL, LeavesThePointer),
        (SMALL, WritesElsewhere),
        (MOMENTUM, MovesTheWrongRows),
    ],
)
def test_a_wrong_write_is_found(case, wrong):
    state, batches = draw(case, CPU)
    with pytest.raises(ArithmeticError, match="writes rows"):
        agreement(case, state, batches[0]).check_write(wrong(case, state))


@pytest.mark.parametrize("case", [SMALL, MOMENTUM, DRAWS], ids=lambda case: case.name)
def test_parts_are_timed_where_there_are_any(case, device):
    if case is DRAWS and device.type != "cpu":
        pytest.skip("draws are the host's")
    write = "update" if case is MOMENTUM else "enqueue"
    halves = set() if case is DRAWS else {"forward", "backward", write}
    for row in run_case(case, 0.0, device, memory=False, without=COMPILED):
        if isinstance(row, Row):
            expected = {write} if row.implementation.startswith("SDPA") else halves
            assert set(row.parts) == expected
            for timing in row.parts.values():
                assert timing.seconds.median > 0
                assert timing.rounds >= 5
                assert timing.speedup[row.implementation] == 1


def test_a_wrong_write_is_not_timed(monkeypatch):
    kinds = [PublishedEager, LeavesThePointer]
    monkeypatch.setattr(run, "implementations", lambda case, device: kinds)
    published, ours = run_case(SMALL, 0.0, memory=False)
    assert isinstance(published, Row)
    assert (ours.outcome, "writes rows" in ours.reason) == ("disagrees", True)


def test_parts_are_timed_with_pytest_benchmark(tmp_path):
    pytest.importorskip("pytest_benchmark")
    output = tmp_path / "parts.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider"]
    chosen = "cpu-float32-64x16384 and not compile and not D64 and not D512"
    command += ["-k", chosen, f"--benchmark-json={output}"]
    done = subprocess.run(
        [*command, "--benchmark-max-time=0", "--benchmark-min-rounds=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = {}
    for timed in json.loads(output.read_text())["benchmarks"]:
        found[timed["params"]["part"], timed["name"].split("16384-")[1]] = timed["extra_info"]
        assert timed["extra_info"]["p20"] <= timed["stats"]["median"] <= timed["extra_info"]["p80"]
    assert {part for part, name in found if "rrd_kernels" in name} == {
        "forward",
        "backward",
        "step",
        "enqueue",
    }
    assert {part for part, name in found if "SDPA" in name} == {"step", "enqueue"}
    assert all(0 < extra["errors"]["gradient"] < 1e-5 for extra in found.values())


def test_draws_are_measured():
    results = run_case(DRAWS, 0.0, memory=False)
    assert [result.implementation for result in results] == ["published loader", "rrd_kernels"]
    assert all(isinstance(result, Row) and result.rate is None for result in results)


def test_what_is_left_out_is_not_run(monkeypatch):
    monkeypatch.setattr(run, "implementations", lambda case, device: [PublishedEager, TooLarge])
    assert [
        row.implementation for row in run_case(SMALL, 0.0, without=[TooLarge], memory=False)
    ] == [PublishedEager.name]


class Repeats(Sampler):
    def __call__(self, idx):
        columns = super().__call__(idx)
        columns[0, 1] = columns[0, 2]
        return columns


class OfItsOwnClass(Sampler):
    def __call__(self, idx):
        columns = super().__call__(idx)
        columns[0, 1] = idx[0]
        return columns


class OfAnother(Sampler):
    def __call__(self, idx):
        return super().__call__(idx.flip(0))


@pytest.mark.parametrize("wrong", [Repeats, OfItsOwnClass, OfAnother])
def test_wrong_draws_are_not_timed(wrong, monkeypatch):
    monkeypatch.setattr(run, "implementations", lambda case, device: [PublishedLoader, wrong])
    published, ours = run_case(DRAWS, 0.0, memory=False)
    assert isinstance(published, Row)
    assert isinstance(ours, Absent)
    assert "ArithmeticError" in ours.reason


@pytest.mark.parametrize("cases", [CPU_CASES, CUDA_CASES])
def test_cases_are_told_apart_by_their_names(cases):
    assert len({case.name for case in cases}) == len(cases)


def test_names_of_cases():
    assert Case(64, 16384, "float32", matmul_precision="high").name == "tf32 64×16384"
    assert Case(1024, 65536, "bfloat16", dim=64).name == "bfloat16 1024×65536 D=64"
    assert MOMENTUM.name == "float32 momentum 8×64 of 500"
    assert {target.case for target in targets.CUDA_TARGETS} == {case.name for case in CUDA_CASES}
    assert {target.case for target in targets.CPU_TARGETS} <= {case.name for case in CPU_CASES}


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_record_gives_its_cases_back(device_type):
    for case in cases_for(torch.device(device_type)):
        assert from_fields(json.loads(json.dumps(asdict(case)))) == case
