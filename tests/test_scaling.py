"""docs/scaling.md and the model behind it."""

import json
import re
import sys

import pytest
import torch
from ranks import on_ranks
from test_traffic import HEADER, Traffic

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from benchmarks.distributed import __main__ as command
from benchmarks.distributed import measure, model
from benchmarks.distributed.measure import of_processes
from benchmarks.distributed.model import GATHERS, Link, Machine, Step, collective
from benchmarks.measuring.breakdown import CASE
from benchmarks.report import documents
from benchmarks.report.record import RESULTS, ROOT
from rrd_kernels import RRDLoss
from rrd_kernels.distributed.collectives import RING

TEXT = (ROOT / "docs" / "scaling.md").read_text()
#: What its tables are made of.
SOURCES = {of.split()[0]: ROOT / place for _, of, place in documents.MARKED.findall(TEXT)}
CPU = RESULTS / "cpu-2-cores-avx512-2026-11-27.json"


def run(monkeypatch, *arguments):
    """Calls the command."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    command.main()


def test_the_page_is_what_the_commands_print(monkeypatch, capsys):
    assert documents.with_tables(TEXT) == TEXT
    for option, section in (("--card", "simulated"), ("--measure", "measured")):
        run(monkeypatch, option, SOURCES[section])
        assert capsys.readouterr().out.strip() in TEXT
    run(monkeypatch)
    assert capsys.readouterr().out.startswith("eight H200")


def test_what_the_page_says_of_processes():
    machine, steps = of_processes(json.loads(SOURCES["measured"].read_text()))
    ratios = {step: sum(model.parts(machine, step)) / taken for step, taken in steps.items()}
    for which in (("none", 1, 8192), ("none", 1, 32768), ("keys", 2, 8192)):  # the constants'
        assert ratios[Step(*which, 64)] == pytest.approx(1)
    least, most = min(ratios.values()), max(ratios.values())
    assert f"The model is {least:.2f} to {most:.2f} of" in TEXT
    assert f"took up to {1 / least:.1f} times what" in TEXT


def test_a_card_has_a_table(tmp_path, monkeypatch, capsys):
    """Inside what ``make gpu-check`` wrote, too. An older record has other layers of the host."""
    path = tmp_path / "card.json"
    record = json.loads(CPU.read_text()) | {"gpu": {"name": "a GPU"}}
    layer = {"implementation": "rrd_kernels", "figure": "host", "case": CASE.name}
    older = list(record["rows"])
    record["rows"] += [layer | {"name": name, "median": 2e-5} for name in ("a", "b")]
    path.write_text(json.dumps({"stages": {"build": {}, "official": {"record": record}}}))
    run(monkeypatch, "--card", path)
    assert re.match("a GPU, bfloat16 .*: step 4e-05,", capsys.readouterr().out)
    path.write_text(json.dumps(record | {"rows": older}))
    for card, message in ((path, "the bfloat16 cases or the host's time"), ("absent", "absent")):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, "--card", card)


def test_steps_are_measured_once(tmp_path, monkeypatch, capsys):
    for name, value in {"SIZES": (300, 600), "RANKS": (1, 2)}.items():
        monkeypatch.setattr(measure, name, value)
    path = tmp_path / "ranks.json"
    run(monkeypatch, "--measure", path)
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 2 + 2 * 3
    assert all(row["seconds"]["median"] > 0 for row in rows)
    printed = capsys.readouterr().out
    monkeypatch.setattr(measure, "RANKS", ())
    run(monkeypatch, "--measure", path)
    assert capsys.readouterr().out == printed


def sent(rank):
    """Bytes of the collectives of a second step, by the mode."""
    found = {}
    for gather in GATHERS:
        criterion = RRDLoss(s_dim=8, t_dim=8, feat_dim=8, nce_k=30, gather=gather, start="unit")
        f_s, f_t = torch.randn(2, 6, 8)
        criterion(f_s, f_t)
        with Traffic() as traffic:
            criterion(f_s, f_t)
        found[gather] = [size for _, size in traffic.seen]
    return found


def test_bytes_are_those_that_are_counted():
    for gather, sizes in on_ranks(2, sent)[0].items():
        step = Step(gather, 2, 30, 6, dim=8)
        assert sizes == [2 * each for each in (HEADER, *step.messages) if step.messages]


def test_a_collective_takes_the_fastest_way_round_a_ring():
    slow = Link(1e-4, 1e-5, 1e9)
    link = Link(1e-5, 1e-6, 1e7, among_nodes=2e-6, network_latency=5e-6, network_bandwidth=1e6)
    machine = Machine(links=(slow, link))
    assert collective(machine, 8, 100) == pytest.approx(1e-5 + 7e-6 + 7 * 100 / 1e7)
    assert collective(machine, 8, 10**6) == pytest.approx(1e-4 + 7e-5 + 7 * 10**6 / 1e9)
    # 28 hops within four nodes, three between them.
    in_nodes = machine._replace(links=(link,))
    assert collective(in_nodes, 32, 100) == pytest.approx(1e-5 + 56e-6 + 15e-6 + 31 * 100 / 1e6)


@pytest.mark.parametrize(("ranks", "rounds"), [(2, 1), (3, 2), (4, 3), (8, 4), (1024, 11)])
def test_a_header_has_the_rounds_of_its_messages(ranks, rounds):
    """A ring, or a gathering and a broadcast: tests/test_traffic.py."""
    machine = Machine(agree=1.0, round=0.01, each=0.0001)
    each = 0.0001 * (ranks - 1) if ranks > RING else 0
    assert model.header(machine, ranks) == pytest.approx(1 + 0.01 * rounds + each)
