"""The benchmark measures what it says, and the README shows what was measured."""

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import readme, record, run, targets
from benchmarks.agreement import Agreement, Errors
from benchmarks.cases import CPU_CASES, CUDA_CASES, Case, draw
from benchmarks.figures import CUDA_UNITS
from benchmarks.measure import Spread
from benchmarks.peers import Compiled, Fused, PublishedEager, implementations
from benchmarks.run import Absent, Row, Timing, run_case
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


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.format)
def test_every_implementation_agrees_before_it_is_timed(case, device):
    results = run_case(case, 0.0, device, memory=device.type == "cuda")
    assert [result.implementation for result in results] == [
        kind.name for kind in implementations(device)
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
    memory, batches = draw(case, device)
    agreement = Agreement(case, memory, batches[0])
    agreement.check(PublishedEager(memory, case.tau_s, case.tau_t))
    step = Compiled(memory, case.tau_s, case.tau_t)
    agreement.check(step)
    twin = PublishedEager(memory, case.tau_s, case.tau_t)
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
    monkeypatch.setattr(run, "implementations", lambda device: [PublishedEager, wrong])
    published, ours = run_case(SMALL, 0.0, memory=False)
    assert isinstance(published, Row)
    assert isinstance(ours, Absent)
    assert ours.outcome == outcome
    assert reason in ours.reason
    assert "\n" not in ours.reason


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
    assert {target.case for target in targets.TARGETS} == {case.name for case in CUDA_CASES}


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
        for outcome in targets.outcomes(results_of_a_gpu(), RATES)
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
    table.print_targets(targets.outcomes(results, RATES))
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


def test_readme_shows_committed_records():
    text = (ROOT / "README.md").read_text()
    assert readme.shown_records(text)
    for path in readme.shown_records(text):
        assert readme.section(path) in text
        for look in readme.load(path)["machine"].values():
            assert look["busy_cores"] < 0.2
