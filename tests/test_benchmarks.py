"""The benchmark measures what it says, and the README shows what was measured."""

import functools
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import readme, record, run, targets
from benchmarks.agreement import Errors, agreement
from benchmarks.cases import (
    CPU_CASES,
    CUDA_CASES,
    Case,
    DrawCase,
    MomentumCase,
    cases_for,
    from_fields,
)
from benchmarks.figures import CPU_UNITS, CUDA_UNITS
from benchmarks.implementations import implementations
from benchmarks.inputs import draw
from benchmarks.measure import CLEAR_REFS, Spread
from benchmarks.momentum import FusedMomentum, PublishedMomentum
from benchmarks.negatives import PublishedLoader, Sampler
from benchmarks.peers import Compiled, Fused, PublishedEager
from benchmarks.run import Absent, Row, Timing, run_case
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
    results = run_case(case, 0.0, device, memory=device.type == "cuda")
    assert [result.implementation for result in results] == [
        kind.name for kind in implementations(case, device)
    ]
    if device.type == "cpu":  # a GPU may lack some of PyTorch's kernels
        assert all(isinstance(result, Row) for result in results)
    ours = results[-1]
    assert isinstance(ours, Row), ours
    assert ours.seconds.median > 0
    assert ours.not_captured is None
    assert bool(ours.replay) == (device.type == "cuda")


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.format)
def test_what_is_compiled_agrees(case, device, monkeypatch):
    # Inductor would take half a minute for what is seen here: the writes in a graph, the numbers.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    state, batches = draw(case, device)
    judge = agreement(case, state, batches[0])
    judge.check(PublishedEager(case, state))
    step = Compiled(case, state)
    judge.check(step)
    twin = PublishedEager(case, state)
    twin(*batches[0])
    assert torch.equal(step.memory, twin.memory)
    assert torch.equal(step.pointer, twin.pointer)


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


@pytest.mark.parametrize(
    ("wrong", "outcome", "reason"),
    [
        (OffByAThousandth, "not available", "ArithmeticError"),
        (WithoutEnqueue, "not available", "ArithmeticError"),
        (TooLarge, "out of memory", "tried to allocate much"),
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


def test_the_momentum_memory_is_measured():
    memory = CLEAR_REFS.exists()
    results = run_case(MOMENTUM, 0.0, memory=memory)
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
    for kind in implementations(MOMENTUM, device):
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


def test_draws_are_measured():
    results = run_case(DRAWS, 0.0, memory=False)
    assert [result.implementation for result in results] == ["published loader", "rrd_kernels"]
    assert all(isinstance(result, Row) and result.rate is None for result in results)


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


def test_command_writes_a_record_and_keeps_the_one_before(tmp_path):
    pytest.importorskip("rich")
    output = tmp_path / "record.json"
    output.write_text("{}")
    command = [sys.executable, "-m", "benchmarks", "--device", "cpu", "--cases", "float32 64"]
    done = subprocess.run(
        [*command, "--seconds", "0", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert output.read_text() == "{}"
    written = json.loads((tmp_path / "record-2.json").read_text())
    assert [row["implementation"] for row in written["rows"]] == [
        "published eager",
        "SDPA",
        "rrd_kernels",
    ]
    for row in written["rows"]:
        assert row["seconds"]["median"] > 0
        assert row["extra_bytes"] > 0
    assert "rrd_kernels" in done.stdout


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


def row(
    case: Case,
    name: str,
    wall: float,
    replay: float | None = None,
    gradient_error: float = 0.0,
    **speedup: float,
) -> Row:
    def spread(seconds):
        return Spread(seconds, seconds, seconds)

    return Row(
        case=case,
        implementation=name,
        seconds=spread(wall),
        rounds=7,
        speedup={key.replace("_", " "): value for key, value in speedup.items()},
        extra_bytes=3 << 20,
        errors=Errors(0.0, gradient_error),
        replay=None if replay is None else Timing(spread(replay), 7, {}),
    )


TINY = Case(64, 16384, "bfloat16")
LARGE = Case(1024, 65536, "bfloat16")
WIDE = replace(LARGE, dim=256)
#: Such that 100e12 operations per second are the share 1.
RATES = {"bfloat16": 100e12}


def results_of_a_gpu():
    return [
        row(TINY, "published eager", 300e-6, gradient_error=0.0123),
        Absent(TINY, "torch.compile", "not available", "it broke"),
        row(TINY, "SDPA flash", 200e-6, 50e-6),
        row(TINY, "SDPA cuDNN", 200e-6, 30e-6),
        row(TINY, "rrd_kernels", 40e-6, 12.5e-6, 4.56e-3, published_eager=7.5, SDPA_cuDNN=5.0),
        row(LARGE, "rrd_kernels", 1.0, LARGE.operations / 80e12),
        row(WIDE, "rrd_kernels", 1.0, WIDE.operations / 69e12),
    ]


def test_targets_are_compared_with_what_was_measured():
    found = {
        (outcome.case, outcome.figure): outcome
        for outcome in targets.outcomes(results_of_a_gpu(), RATES, targets.CUDA_TARGETS)
    }
    graph = found[TINY.name, "µs in a CUDA graph"]
    assert (graph.limit, graph.measured, graph.met) == (12, pytest.approx(12.5), False)
    assert found[TINY.name, "µs without a graph"].met
    assert found[TINY.name, "× published eager"].met
    compiled = found[TINY.name, "× torch.compile"]
    assert (compiled.measured, compiled.met) == (None, False)
    assert found[TINY.name, "extra MiB"].met
    assert found[LARGE.name, "share of torch.mm"].measured == pytest.approx(0.8)
    wide = found[WIDE.name, "share of torch.mm"]
    assert (wide.limit, wide.met) == (pytest.approx(0.7), False)
    assert {outcome.case for outcome in found.values()} == {TINY.name, LARGE.name, WIDE.name}


def test_tables_of_a_gpu(capsys):
    table = pytest.importorskip("benchmarks.table")
    results = results_of_a_gpu()
    table.print_table(results, CUDA_UNITS, RATES)
    table.print_targets(targets.outcomes(results, RATES, targets.CUDA_TARGETS))
    printed = capsys.readouterr().out
    assert "12.5 [12.5–12.5]" in printed
    assert "torch.compile not available, it broke: bfloat16 64×16384" in printed
    assert "at least 70% share of torch.mm" in printed


def test_readme_table_of_a_gpu():
    rows = [record.of_result(result) for result in results_of_a_gpu()[:5]]
    look = {"mm_gflops": {"bfloat16": 1e5}}
    text = readme.table({"gpu": {}, "machine": {"before": look, "after": None}, "rows": rows})
    assert text.splitlines()[2] == (
        "| bfloat16 64×16384 | 300 | not available | 200 (cuDNN) | 40.0 | 7.5 | – | 5.0 "
        "| 30.0 → 12.5 | 86% | 3.0 → 3.0 | 1.2e-02 → 4.6e-03 |"
    )


def results_of_the_momentum_memory():
    case = targets.MOMENTUM
    return [
        row(case, "published eager", 2.0, gradient_error=3e-5),
        row(case, "rrd_kernels", 0.125, gradient_error=2e-6, published_eager=16.0),
        replace(row(DRAWS, "published loader", 0.064), errors=None),
        replace(row(DRAWS, "rrd_kernels", 0.016, published_loader=4.0), errors=None),
    ]


def test_the_momentum_memory_has_its_targets_and_tables(capsys):
    table = pytest.importorskip("benchmarks.table")
    results = results_of_the_momentum_memory()
    met = {
        outcome.figure: outcome.met
        for outcome in targets.outcomes(results, {}, targets.CPU_TARGETS)
    }
    assert met == {"× published eager": True, "extra MiB": True}
    table.print_table(results, CPU_UNITS, {}, title="momentum memory")
    printed = capsys.readouterr().out
    assert printed.startswith("momentum memory")
    assert "16.00" in printed
    assert "4.00" in printed
    assert "GFLOP/s" not in printed


def test_readme_table_of_the_momentum_memory():
    results = results_of_the_momentum_memory()
    rows = json.loads(json.dumps([record.of_result(result) for result in results]))
    lines = readme.table({"machine": {"before": {"mm_gflops": {}}}, "rows": rows}).splitlines()
    assert lines[0].startswith("| momentum memory | published, ms | rrd_kernels, ms |")
    assert lines[2:] == [
        f"| {targets.MOMENTUM.name} | 2000 | 125 | 16.0 | 3.0 → 3.0 | 3.0e-05 → 2.0e-06 |",
        f"| {DRAWS.name} | 64.0 | 16.0 | 4.0 | 3.0 → 3.0 | – → – |",
    ]


def test_readme_shows_committed_records():
    text = (ROOT / "README.md").read_text()
    assert readme.shown_records(text)
    for path in readme.shown_records(text):
        assert readme.section(path) in text
        for look in readme.load(path)["machine"].values():
            assert look["busy_cores"] < 0.2
