"""docs/scaling.md and the model behind it."""

import json
import math

import pytest
import torch

from benchmarks.distributed import page
from benchmarks.distributed.__main__ import measured
from benchmarks.distributed.large import DIM, RANKS, large
from benchmarks.distributed.measure import LARGE, constants
from benchmarks.distributed.model import H200, Machine, Step, collective, parts, seconds
from rrd_kernels.distributed.layout import ROWS_AT_ONCE


def test_the_page_has_the_models_tables():
    """``python -m benchmarks.distributed --page RECORD`` writes them."""
    text = page.PAGE.read_text()
    for section in page.sections(page.record_of(text)).values():
        assert section in text


def test_bytes_are_those_that_are_counted():
    """As tests/test_traffic.py has them: two ranks, six samples each, D = 8, float64."""
    keys, shard = (Step(gather, 2, 30, 6, dim=8, element=8) for gather in ("keys", "shard"))
    assert keys.sent == 2 * 48 + 2 * 6 * 8 * 8
    # The model's sums are float32, as they are of float32 embeddings.
    assert shard.sent == 2 * 48 + 2 * 6 * 2 * 8 * 8 + 2 * 6 * 19 * 4
    assert (keys.held, shard.held) == (30 * 8 * 8, 15 * 8 * 8)
    assert not Step("keys", 8, 30, 6).possible
    assert Step("none", 8, 30, 6).possible


def test_one_rank_costs_the_same_in_all_modes():
    found = {seconds(H200, Step(gather, 1, 65536, 64)) for gather in ("none", "keys", "shard")}
    assert len(found) == 1
    assert collective(H200, 1, 1e9) == 0


def test_a_collective_between_nodes():
    machine = Machine("m", 0, 1, 1e-6, 1e9, per_node=8, network_latency=1e-5, network_bandwidth=1e8)
    assert collective(machine, 8, 1000) == pytest.approx(3e-6 + 7 * 1000 / 1e9)
    assert collective(machine, 32, 1000) == pytest.approx(3e-6 + 2e-5 + 31 * 1000 / 1e8)
    ring = machine._replace(ring=True)
    assert collective(ring, 8, 0) == pytest.approx(7e-6)


def test_products_are_the_same_and_reading_is_not():
    keys, shard = (parts(H200, Step(g, 64, 2**24, 1))[0] - H200.step for g in ("keys", "shard"))
    assert keys == pytest.approx(2**24 * 128 * 4 / H200.read)
    assert shard < keys / 2


def test_constants_are_found_again():
    machine = Machine("m", 2e-3, 5e10, 3e-4, 2e9, cores=2, ring=True)
    rows = [
        {
            "gather": "none",
            "ranks": 1,
            "size": size,
            "seconds": seconds(machine, Step("none", 1, size, 64)),
        }
        for size in (1000, 3000, 9000)
    ]
    found = constants(rows, {"48": 3e-4, str(LARGE): 3e-4 + LARGE / 2e9})
    assert found.step == pytest.approx(machine.step)
    assert found.flops == pytest.approx(machine.flops)
    assert found.latency == machine.latency
    assert found.bandwidth == pytest.approx(machine.bandwidth)


def test_a_measurement():
    torch.use_deterministic_algorithms(False)
    record = measured(["python"], 0.0, sizes=(300, 600, 1200), least=0.0)
    assert len(record["rows"]) == 3 + 2 * 9
    for row in record["rows"]:
        assert 0 < row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["rounds"] >= 7
    assert record.keys() >= {"date", "versions", "commit", "uncommitted_changes", "cpu", "state"}
    assert (record["command"], record["threads"]) == ("python", 1)
    assert math.isfinite(json.loads(json.dumps(record, allow_nan=False))["machine"]["flops"])
    table = page.checked(record)
    assert table.count("\n") == 2 + len(record["rows"])


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
