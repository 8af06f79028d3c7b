"""docs/scaling.md and the model behind it."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from benchmarks import paths
from benchmarks.cases import Case
from benchmarks.distributed import __main__ as command
from benchmarks.distributed import card, page
from benchmarks.distributed.large import DIM, RANKS, large
from benchmarks.distributed.measure import LARGE, SIZES, constants, median_of, step_of
from benchmarks.distributed.model import (
    H200,
    Link,
    Machine,
    Step,
    collective,
    header,
    parts,
    seconds,
)
from benchmarks.paths import ROOT
from benchmarks.record import load
from rrd_kernels.distributed.collectives import RING
from rrd_kernels.distributed.layout import ROWS_AT_ONCE


def test_the_page_has_the_models_tables():
    """``python -m benchmarks.distributed --page RECORD`` writes them."""
    text = page.PAGE.read_text()
    for section in page.sections(*page.records_of(text)).values():
        assert section in text


def test_what_the_page_says_of_processes():
    text = page.PAGE.read_text()
    ranks, _ = page.records_of(text)
    record = json.loads(ranks.read_text())
    machine = Machine.of_record(record["machine"])
    ratios = {
        (row["ranks"], row["size"], row["gather"]): of_measured(machine, row)
        for row in record["rows"]
    }
    assert f"The model is {min(ratios.values()):.2f} to {max(ratios.values()):.2f} of" in text
    assert f"took up to {1 / min(ratios.values()):.1f} times what" in text
    largest = [ratio for (_, size, _), ratio in ratios.items() if size == max(SIZES)]
    assert f"within {max(abs(ratio - 1) for ratio in largest):.0%}".replace("%", " %") in text


def of_measured(machine, row):
    return seconds(machine, step_of(row)) / median_of(row)


def test_bytes_are_those_that_are_counted():
    """As tests/test_traffic.py has them: two ranks, six samples each, D = 8, float64."""
    keys, shard = (Step(gather, 2, 30, 6, dim=8, element=8) for gather in ("keys", "shard"))
    assert keys.through == 2 * 48 + 2 * 6 * 8 * 8
    # The model's sums are float32, as they are of float32 embeddings.
    assert shard.through == 2 * 48 + 2 * 6 * 2 * 8 * 8 + 2 * 6 * 19 * 4
    assert (keys.held, shard.held) == (30 * 8 * 8, 15 * 8 * 8)
    assert not Step("keys", 8, 30, 6).possible
    assert Step("none", 8, 30, 6).possible


def test_one_rank_costs_the_same_in_all_modes():
    found = {seconds(H200, Step(gather, 1, 65536, 64)) for gather in ("none", "keys", "shard")}
    assert len(found) == 1
    assert collective(H200, 1, 1e9) == 0


def test_a_collective_between_nodes():
    link = Link(1e-5, 1e-6, 1e9, among_nodes=2e-6, network_latency=5e-6, network_bandwidth=1e8)
    machine = Machine("m", 0, 1, (link,), per_node=8)
    assert collective(machine, 8, 1000) == pytest.approx(1e-5 + 7e-6 + 7 * 1000 / 1e9)
    # 28 hops within four nodes, three between them.
    wanted = 1e-5 + 28 * 2e-6 + 3 * 5e-6 + 31 * 1000 / 1e8
    assert collective(machine, 32, 1000) == pytest.approx(wanted)


def test_a_collective_takes_the_fastest_way():
    soon, fast = Link(1e-6, 1e-6, 1e6), Link(1e-4, 1e-5, 1e9)
    machine = Machine("m", 0, 1, (soon, fast))
    assert collective(machine, 4, 8) == pytest.approx(1e-6 + 3e-6 + 3 * 8 / 1e6)
    assert collective(machine, 4, 10**6) == pytest.approx(1e-4 + 3e-5 + 3 * 10**6 / 1e9)


def test_a_header_has_the_rounds_of_its_messages():
    """As tests/test_traffic.py has them: a ring, or a gathering and a broadcast."""
    machine = Machine("m", 0, 1, (Link(0, 0, 1),), agree=1.0, round=0.01, each=0.0001)
    rounds = {1: None, 2: 1, 3: 2, 4: 3, 8: 4, 1024: 11}
    for ranks, wanted in rounds.items():
        if wanted is None:
            assert header(machine, ranks) == 0
        else:
            each = 0.0001 * (ranks - 1) if ranks > RING else 0
            assert header(machine, ranks) == pytest.approx(1 + 0.01 * wanted + each)


def test_a_machine_outlives_json():
    for machine in (H200, Machine("m", 0, 1, (Link(0, 1e-3, 1e9),), cores=2)):
        assert Machine.of_record(json.loads(json.dumps(machine.as_record()))) == machine


def test_products_are_the_same_and_reading_is_not():
    keys, shard = (parts(H200, Step(g, 64, 2**24, 1))[0] - H200.step for g in ("keys", "shard"))
    assert keys == pytest.approx(2**24 * 128 * 4 / H200.read)
    assert shard < keys / 2


def test_constants_are_found_again():
    link = Link(0.0, 3e-4, 2e9)
    machine = Machine("m", 2e-3, 5e10, (link,), agree=1e-4, round=3e-4, cores=2)
    rows = [
        {
            "gather": "none",
            "ranks": 1,
            "size": size,
            "seconds": seconds(machine, Step("none", 1, size, 64)),
        }
        for size in (1000, 3000, 9000)
    ]
    taken = collective(machine, 2, LARGE)
    found = constants(rows, {"48": 3e-4, str(LARGE): taken}, 1e-4)
    for name in ("step", "flops", "agree", "round"):
        assert getattr(found, name) == pytest.approx(getattr(machine, name)), name
    assert found.links[0] == pytest.approx(link)


def device_record(machine: Machine) -> dict:
    """What ``make bench`` would write of a device with these constants."""
    cases = [Case(64, 16384, "bfloat16"), Case(1024, 65536, "bfloat16"), Case(64, 4096, "float32")]
    rows = []
    for case in cases:
        step = Step("none", 1, case.rows, case.batch, element=case.dtype.itemsize)
        taken = seconds(machine, step)
        row = {"case": asdict(case), "implementation": "rrd_kernels", "seconds": {"median": taken}}
        rows.append({**row, "gflops": case.operations / (taken - machine.step) / 1e9})
    look = {"mm_gflops": {}, "copy_gbytes_per_second": machine.read / 1e9}
    layers = [("kernels, beside the host", 1e-5), ("operator: launches", 2e-5)]
    layers.append(("Python: modules", machine.step - 2e-5))
    return {
        "gpu": {"name": "a GPU", "memory_bytes": 3 * 10**10},
        "versions": {},
        "machine": {"before": look, "after": None},
        "rows": [*rows, {"case": asdict(cases[0]), "implementation": "SDPA", "outcome": "absent"}],
        "host_time": {
            "step": {"median": machine.step + 1e-5},
            "layers": [{"name": name, "seconds": {"median": value}} for name, value in layers],
        },
    }


class TestCard:
    MACHINE = H200._replace(step=9e-5, flops=1e14, read=2e12, capacity=10**10)

    def test_constants_are_found_again(self):
        record = device_record(self.MACHINE)
        found = card.constants(record)
        assert found.name.startswith("a GPU, bfloat16")
        for name in ("step", "flops", "read", "capacity"):
            assert getattr(found, name) == pytest.approx(getattr(self.MACHINE, name))
        assert (found.links, found.round) == (H200.links, H200.round)
        steps = card.steps(record)
        assert [timed.step.size for timed in steps] == [16384, 65536]  # none in float32
        for timed in steps:
            # Without the layer of modules.
            assert timed.model == pytest.approx(timed.measured - 7e-5)

    @pytest.mark.parametrize("missing", ["rows", "host_time", "copy", "sizes"])
    def test_a_record_that_has_not_all_of_it(self, missing):
        record = device_record(self.MACHINE)
        if missing == "copy":
            del record["machine"]["before"]["copy_gbytes_per_second"]
        elif missing == "sizes":
            record["command"] = "python -m benchmarks.report --quick"
        else:
            record[missing] = [] if missing == "rows" else None
        with pytest.raises(ValueError, match="the cases in bfloat16 and of the host's time"):
            card.constants(record)

    def test_it_takes_its_place_on_the_page(self, tmp_path, monkeypatch):
        """Inside what ``make gpu-check`` wrote, too."""
        for module in (page, paths):
            monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(page, "PAGE", tmp_path / "scaling.md")
        text = (ROOT / "docs" / "scaling.md").read_text()
        ranks, _ = page.records_of(text)
        name = ranks.relative_to(tmp_path)
        page.PAGE.write_text(text.replace(f": {name} -->", ": none -->"))
        path = tmp_path / "card.json"
        stages = {"build": {}, "official": {"record": device_record(self.MACHINE)}}
        path.write_text(json.dumps({"stages": stages}))
        page.write([path])
        written = page.PAGE.read_text()
        assert page.records_of(written) == (None, path)
        assert "<!-- simulated: card.json -->" in written
        assert "| flops, TFLOP/s | 100 | measured |" in written
        assert "| t_round, µs | 50 | assumed |" in written
        assert "<!-- links: card.json -->" in written
        assert "| 1024 | 65536 | 128 | 777 | 707 | 0.91" in written
        assert "(gave flops)" in written
        page.write([])  # what it shows stays
        assert page.PAGE.read_text() == written

    def test_what_the_page_says_of_a_cpu(self):
        path = "benchmarks/results/cpu-2-cores-avx512-bf16-2026-11-21.json"
        record = load(ROOT / path)
        others = [timed for timed in card.steps(record) if not timed.gave_flops]
        first, second = (f"{timed.model / timed.measured:.2f}" for timed in others)
        expected = f"{first} and {second} of the two measured bfloat16 steps whose rate"
        assert expected in page.PAGE.read_text()
        assert path.rpartition("/")[2] in page.PAGE.read_text()


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--card", "x.json", "--page", "y.json"], "--card"),
            (["--card", "x.json", "--large", "64"], "--card"),
            (["--large", "0"], "32 rows of a step at least; got 0"),
            (["--large", "31"], "got 31"),
            (["--large", "-5"], "got -5"),
            (["--measure", str(ROOT)], "does not end in .json"),
            (["--measure", str(page.PAGE / "x.json")], page.PAGE.name),
            (["--page", "benchmarks/results/absent.json"], "absent.json"),
            (["--page", str(page.PAGE)], f"{page.PAGE.name} is no JSON"),
        ],
    )
    def test_bad_arguments_are_refused_before_anything_is_measured(
        self, arguments, message, monkeypatch, capsys
    ):
        monkeypatch.setattr(command, "measured", pytest.fail)
        with pytest.raises(SystemExit, match="2"):
            command.main(arguments)
        assert message in capsys.readouterr().err

    def test_a_page_shows_records_of_the_repository(self, tmp_path, capsys):
        path = tmp_path / "record.json"
        path.write_text("{}")
        with pytest.raises(SystemExit, match="2"):
            command.main(["--page", str(path)])
        assert f"{path} is outside the repository" in capsys.readouterr().err

    def test_a_record_that_exists_is_not_what_is_measured(self, capsys):
        ranks, _ = page.records_of(page.PAGE.read_text())
        with pytest.raises(SystemExit, match="2"):
            command.main(["--measure", str(ranks), "--page", str(ranks)])
        assert f"{ranks} exists" in capsys.readouterr().err

    def test_a_number_is_added_to_the_name_of_a_record_that_exists(self, tmp_path):
        (tmp_path / "x.json").touch()
        options = command.parse_arguments(["--measure", str(tmp_path / "x.json")])
        assert options.measure == tmp_path / "x-2.json"


def test_a_measurement():
    torch.use_deterministic_algorithms(False)
    record = command.measured(["python"], 0.0, sizes=(300, 600, 1200), least=0.0, worlds=(4,))
    assert len(record["rows"]) == 3 + 2 * 9
    for row in record["rows"]:
        assert 0 < row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["rounds"] >= 7
    assert record.keys() >= {"date", "versions", "commit", "uncommitted_changes", "cpu", "state"}
    assert (record["command"], record["threads"]) == ("python", 1)
    assert math.isfinite(json.loads(json.dumps(record, allow_nan=False))["machine"]["flops"])
    table = page.checked(record)
    assert table.count("\n") == 4 + len(record["rows"])
    assert record["machine"]["agree"] >= 0
    assert [row["ranks"] for row in record["headers"]] == [4]
    assert page.headers(record).count("\n") == 3


def test_a_memory_that_one_process_need_not_hold():
    """Made and used in parts: beside its bfloat16 rows a process takes the float32 ones that they
    are made of, of what else there is some rows at a time, and 64 MiB for all that is no memory."""
    size = 2**21
    found = large(size)
    assert found.held == size // RANKS * DIM * 2
    pieces = ROWS_AT_ONCE * DIM * (4 + 8 + 8)
    assert found.held < found.peak < 3 * found.held + pieces + 2**26
    assert found.step > 0
    assert f"K = {size} rows" in str(found)
