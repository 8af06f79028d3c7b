"""The benchmark measures what it says, and the README shows what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import readme
from benchmarks.agreement import check_agreement
from benchmarks.cases import Case, draw
from benchmarks.peers import Fused, implementations
from rrd_kernels.functional import relational_loss

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SMALL = Case(16, 512, "float32")


def test_every_implementation_agrees_before_it_is_timed():
    memory, batches = draw(SMALL, CPU)
    steps = [kind(memory, SMALL.tau_s, SMALL.tau_t) for kind in implementations(CPU)]
    assert len(steps) == 3
    check_agreement(SMALL, steps, memory, batches[0])


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


@pytest.mark.parametrize("wrong", [OffByAThousandth, WithoutEnqueue])
def test_a_wrong_implementation_is_not_timed(wrong):
    memory, batches = draw(SMALL, CPU)
    steps = [kind(memory, SMALL.tau_s, SMALL.tau_t) for kind in implementations(CPU)]
    steps[-1] = wrong(memory, SMALL.tau_s, SMALL.tau_t)
    with pytest.raises(ArithmeticError, match="rrd_kernels"):
        check_agreement(SMALL, steps, memory, batches[0])


def test_command_writes_a_record_and_keeps_the_one_before(tmp_path):
    output = tmp_path / "record.json"
    output.write_text("{}")
    command = [sys.executable, "-m", "benchmarks", "--cases", "float32 64", "--seconds", "0"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert output.read_text() == "{}"
    record = json.loads((tmp_path / "record-2.json").read_text())
    assert [row["implementation"] for row in record["rows"]] == [
        "published eager",
        "SDPA",
        "rrd_kernels",
    ]
    for row in record["rows"]:
        assert row["seconds"]["median"] > 0
        assert row["extra_bytes"] > 0
    assert "rrd_kernels" in done.stdout


def test_readme_shows_a_committed_record():
    text = (ROOT / "README.md").read_text()
    path = readme.shown_record(text)
    assert readme.section(path) in text
    record = json.loads(path.read_text())
    assert record["machine"]["before"]["busy_cores"] < 0.2
    assert record["machine"]["after"]["busy_cores"] < 0.2
