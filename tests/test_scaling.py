"""docs/scaling.md and the model behind it."""

import functools
import json
import re
import sys

import pytest
import torch
from ranks import on_ranks
from test_traffic import Traffic

from benchmarks.distributed import __main__ as command
from benchmarks.distributed import model, page
from benchmarks.distributed.card import card_of
from benchmarks.distributed.measure import MESSAGES, SIZES, constants, measure, steps_of
from benchmarks.distributed.model import GATHERS, H200, Link, Machine, Step, collective, seconds
from benchmarks.paths import ROOT
from rrd_kernels import RRDLoss
from rrd_kernels.distributed.collectives import RING

TEXT = page.PAGE.read_text()
#: The records or the file that sections of the page are made of, by the sections' names.
SOURCES = dict(re.findall(r"<!-- (\w+): (\S+) -->", TEXT))


@pytest.fixture
def cpu():
    """The record of ``make bench`` that the page compares the model with."""
    [name] = re.findall(r"`(cpu-\S+\.json)`", TEXT)
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_the_page_is_what_the_command_writes(tmp_path, monkeypatch):
    assert SOURCES.keys() == {"constants", "simulated", "measured"}
    monkeypatch.setattr(page, "PAGE", tmp_path / "scaling.md")
    page.PAGE.write_text(re.sub(r"( -->\n)[^<]*(<!-- end)", r"\1\2", TEXT))
    records = {ROOT / source for source in SOURCES.values() if source.endswith(".json")}
    page.write([])
    page.write(sorted(records))
    assert page.PAGE.read_text() == TEXT


def test_what_the_page_says_of_processes():
    record = json.loads((ROOT / SOURCES["measured"]).read_text())
    machine = Machine.of_record(record["machine"])
    ratios = {step: seconds(machine, step) / taken for step, taken in steps_of(record)}
    assert f"The model is {min(ratios.values()):.2f} to {max(ratios.values()):.2f} of" in TEXT
    assert f"took up to {1 / min(ratios.values()):.1f} times what" in TEXT
    largest = [ratio for step, ratio in ratios.items() if step.size == max(SIZES)]
    assert f"within {100 * max(abs(ratio - 1) for ratio in largest):.0f} %" in TEXT


def test_what_the_page_says_of_a_cpu(cpu):
    machine, functional, steps = card_of(cpu)
    ratios = [seconds(machine._replace(step=functional), step) / taken for step, taken in steps]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} of its {len(ratios)} bfloat16 steps" in TEXT


@pytest.mark.parametrize("missing", ["rows", "host_time"])
def test_a_record_that_has_not_all_of_it(cpu, missing):
    with pytest.raises(ValueError, match="the bfloat16 cases and the host's time"):
        card_of(cpu | {missing: []})


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
        assert sizes == [2 * each for each in (model.HEADER_BYTES, *step.messages) if step.messages]


def test_one_rank_costs_the_same_in_all_modes():
    assert len({seconds(H200, Step(gather, 1, 65536, 64)) for gather in GATHERS}) == 1


def test_a_collective_takes_the_fastest_way_round_a_ring():
    slow = Link(1e-4, 1e-5, 1e9)
    link = Link(1e-5, 1e-6, 1e7, among_nodes=2e-6, network_latency=5e-6, network_bandwidth=1e6)
    machine = Machine("m", 0, 1, (slow, link), per_node=8)
    assert collective(machine, 8, 100) == pytest.approx(1e-5 + 7e-6 + 7 * 100 / 1e7)
    # 28 hops within four nodes, three between them.
    in_nodes = Machine("m", 0, 1, (link,), per_node=8)
    assert collective(in_nodes, 32, 100) == pytest.approx(1e-5 + 56e-6 + 15e-6 + 31 * 100 / 1e6)
    assert collective(machine, 8, 10**6) == pytest.approx(1e-4 + 7e-5 + 7 * 10**6 / 1e9)


@pytest.mark.parametrize(("ranks", "rounds"), [(2, 1), (3, 2), (4, 3), (8, 4), (1024, 11)])
def test_a_header_has_the_rounds_of_its_messages(ranks, rounds):
    """A ring, or a gathering and a broadcast: tests/test_traffic.py."""
    machine = Machine("m", 0, 1, (Link(0, 0, 1),), agree=1.0, round=0.01, each=0.0001)
    each = 0.0001 * (ranks - 1) if ranks > RING else 0
    assert model.header(machine, ranks) == pytest.approx(1 + 0.01 * rounds + each)


def test_products_are_the_same_and_reading_is_not():
    keys, shard = (
        model.parts(H200, Step(g, 64, 2**24, 1))[0] - H200.step for g in ("keys", "shard")
    )
    assert keys == pytest.approx(2**24 * 128 * 4 / H200.read)
    assert shard < keys / 2


def test_constants_of_processes_are_found_again():
    machine = Machine("m", 2e-3, 5e10, (Link(0.0, 3e-4, 2e9),), agree=1e-4, round=3e-4, cores=2)
    sizes = [("none", 1, 1000), ("none", 1, 3000), ("none", 1, 9000), ("keys", 2, 1000)]
    rows = [
        {"gather": gather, "ranks": ranks, "size": size, "seconds": {"median": taken}}
        for gather, ranks, size in sizes
        if (taken := seconds(machine, Step(gather, ranks, size, 64)))
    ]
    messages = [3e-4, collective(machine, 2, MESSAGES[1])]
    found = Machine.of_record(json.loads(json.dumps(constants(rows, messages))))
    for name in ("step", "flops", "agree", "round"):
        assert getattr(found, name) == pytest.approx(getattr(machine, name)), name
    assert found.links[0] == pytest.approx(machine.links[0])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the command, in a repository of its own."""
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "scaling.md")
    page.PAGE.write_text(TEXT)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        command.main()

    return run


def test_a_card_takes_its_place_on_the_page(run, cpu, tmp_path, capsys):
    """Inside what ``make gpu-check`` wrote, too."""
    path = tmp_path / "card.json"
    record = cpu | {"gpu": {"name": "a GPU"}}
    path.write_text(json.dumps({"stages": {"build": {}, "official": {"record": record}}}))
    run("--card", path)
    host = cpu["host_time"]["layers"][1:]  # the first are the kernels
    t_step = sum(layer["seconds"]["median"] for layer in host)
    assert "a GPU, bfloat16 (t_step, flops, read measured" in (printed := capsys.readouterr().out)
    assert f"t_step {1e6 * t_step:.3g} µs, t_agree 200 µs" in printed
    run("--page", path)
    written = page.PAGE.read_text()
    assert "<!-- simulated: card.json -->" in written
    assert f"<!-- measured: {SOURCES['measured']} -->" in written
    run("--page")  # the assumed constants again
    assert page.PAGE.read_text() == TEXT


def test_measured_steps_take_their_place_on_the_page(run, tmp_path, monkeypatch):
    tiny = functools.partial(measure, sizes=(300, 600), rounds=1, worlds=(1, 2))
    monkeypatch.setattr(command, "measure", tiny)
    path = tmp_path / "ranks.json"
    run("--measure", path, "--page", path)
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 2 + 2 * 3
    assert all(row["seconds"]["median"] > 0 for row in rows)
    assert "<!-- measured: ranks.json -->" in page.PAGE.read_text()
    with pytest.raises(SystemExit, match="exists"):
        run("--measure", path)


def test_a_page_shows_records_of_the_repository(run):
    with pytest.raises(SystemExit, match="not in the subpath"):
        run("--page", ROOT / SOURCES["measured"])
