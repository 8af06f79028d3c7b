"""Ceilings, targets and tables of what was measured."""

import json
from dataclasses import replace

import pytest

from benchmarks import implementation_tables, markdown, record, targets, work
from benchmarks.cases import Case, DrawCase
from benchmarks.ceilings import BANDWIDTH, COMPUTE, Ceilings
from benchmarks.errors import Errors
from benchmarks.figures import CPU_UNITS, CUDA_UNITS
from benchmarks.measure import Spread
from benchmarks.run import Absent, PartTiming, Row, Timing

DRAWS = DrawCase(8, 64, n_data=500)
TINY = Case(64, 16384, "bfloat16")
LARGE = Case(1024, 65536, "bfloat16")
WIDE = replace(LARGE, dim=256)
#: Such that 100e12 operations per second are the share 1.
CEILINGS = Ceilings({"bfloat16": 100e12}, 4e12)


def row(
    case: Case,
    name: str,
    wall: float,
    replay: float | None = None,
    gradient_error: float = 0.0,
    **speedup: float,
) -> Row:
    def spread(seconds):
        return Spread(seconds, 0.9 * seconds, 1.1 * seconds)

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


def results_of_a_gpu():
    return [
        row(TINY, "published eager", 300e-6, gradient_error=0.0123),
        Absent(TINY, "torch.compile", "not available", "it broke"),
        # The faster in a graph is not the faster without.
        row(TINY, "SDPA flash", 200e-6, 50e-6),
        row(TINY, "SDPA cuDNN", 240e-6, 30e-6),
        row(
            *(TINY, "rrd_kernels", 40e-6, 12.5e-6, 4.56e-3),
            published_eager=7.5,
            SDPA_flash=5.0,
            SDPA_cuDNN=6.0,
        ),
        row(LARGE, "rrd_kernels", 1.0, LARGE.operations / 80e12),
        row(WIDE, "rrd_kernels", 1.0, WIDE.operations / 69e12),
    ]


def results_of_the_momentum_memory():
    case = targets.MOMENTUM
    return [
        row(case, "published eager", 2.0, gradient_error=3e-5),
        row(case, "rrd_kernels", 0.125, gradient_error=2e-6, published_eager=16.0),
        replace(row(DRAWS, "published loader", 0.064), errors=None),
        replace(row(DRAWS, "rrd_kernels", 0.016, published_loader=4.0), errors=None),
    ]


def recorded(results, mm_rate, copy_rate, **fields):
    """As read from a file."""
    before = record.Machine(mm_rate, copy_rate, 0.0, {})
    text = json.dumps(record.Measured(before, results=results).as_record() | fields)
    return json.loads(text)


class TestCeilings:
    def test_the_slower_of_products_and_copies_bounds(self):
        # 8·64·128·16384 operations; (16384 + 4·64) rows of 128 halves.
        assert TINY.operations == 1073741824
        assert TINY.bytes == 4259840
        compute = CEILINGS.bound(TINY)
        assert (compute.by, compute.seconds) == (COMPUTE, pytest.approx(1073741824 / 100e12))
        assert compute.share(2 * compute.seconds) == pytest.approx(0.5)
        few = Ceilings({"bfloat16": 100e12}, 0.3e12).bound(TINY)
        assert (few.by, few.seconds) == (BANDWIDTH, pytest.approx(4259840 / 0.3e12))

    def test_draws_are_bound_by_what_they_write(self):
        bound = CEILINGS.bound(DRAWS)
        assert (bound.by, bound.seconds) == (BANDWIDTH, pytest.approx(8 * 8 * 65 / 4e12))

    def test_rows_of_the_momentum_memory_count_once(self):
        """Far more columns than rows: all rows of both memories, and little else."""
        case = replace(targets.MOMENTUM, batch=4096)
        rows = 2 * case.n_data * case.dim * 4
        rest = 7 * 4096 * case.dim * 4 + 8 * 4096 * 16385
        assert case.bytes == rows + rest

    def test_what_was_not_measured_bounds_nothing(self):
        assert Ceilings({}, None).bound(TINY) is None
        assert Ceilings({"bfloat16": 1e12}, None).bound(TINY).by == COMPUTE

    def test_the_best_look_at_the_machine_counts(self):
        looks = [
            {"mm_gflops": {"float32": rate}, "copy_gbytes_per_second": copy}
            for rate, copy in ((100.0, 12.0), (90.0, 14.0))
        ]
        before, after = looks
        found = Ceilings.of_record({"machine": {"before": before, "after": after}})
        assert found == Ceilings({"float32": 100e9}, 14e9)
        assert Ceilings.of_record({"machine": {"before": after, "after": None}}).copy_rate == 14e9


class TestWork:
    """Of a batch of 64 against 16384 rows of 128 halves."""

    def test_halves_make_a_step(self):
        forward, backward = (work.of_part(TINY, part) for part in ("forward", "backward"))
        assert forward.operations == backward.operations == TINY.operations // 2
        # The memory once each; z_s, z_t and the rows that are enqueued; z_s and the gradient.
        assert forward.bytes == (16384 + 3 * 64) * 128 * 2
        assert backward.bytes == (16384 + 2 * 64) * 128 * 2

    def test_a_gradient_that_forward_computes(self):
        forward, backward = (work.of_part(TINY, part, True) for part in ("forward", "backward"))
        assert forward.operations == TINY.operations
        # The gradient is saved in float32, and written as halves.
        assert forward.bytes == (16384 + 3 * 64) * 128 * 2 + 64 * 128 * 4
        assert backward == work.Work(None, 64 * 128 * (4 + 2))

    def test_writes(self):
        assert work.of_part(TINY, "enqueue") == work.Work(None, 2 * 64 * 128 * 2)
        # Both memories' rows are read and written, and z_s and z_t read.
        update = work.of_part(targets.MOMENTUM, "update")
        assert update == work.Work(None, 6 * 64 * 128 * 4 + 8 * 64)

    def test_halves_of_the_momentum_memory(self):
        case = replace(targets.MOMENTUM, batch=4096)  # so that each row is drawn
        forward, backward = (work.of_part(case, part) for part in ("forward", "backward"))
        assert forward.operations == 2 * backward.operations == 4 * 4096 * 16385 * 128
        assert backward.bytes == (case.n_data + 2 * 4096) * 128 * 4 + 8 * 4096 * 16385
        assert forward.bytes == case.bytes - 4096 * 128 * 4


def test_targets_are_compared_with_what_was_measured():
    found = {
        (outcome.case, outcome.figure): outcome
        for outcome in targets.outcomes(results_of_a_gpu(), CEILINGS.mm_rate, targets.CUDA_TARGETS)
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
    table.print_table(results, CUDA_UNITS, CEILINGS)
    table.print_targets(targets.outcomes(results, CEILINGS.mm_rate, targets.CUDA_TARGETS))
    printed = capsys.readouterr().out
    assert "12.5 [11.2–13.8]" in printed
    assert "80% (compute)" in printed
    assert "5.00" in printed
    assert "6.00" not in printed
    assert "torch.compile not available, it broke: bfloat16 64×16384" in printed
    assert "at least 70% share of torch.mm" in printed


def test_a_record_gives_each_figure_its_ceiling():
    rows = recorded(results_of_a_gpu(), CEILINGS.mm_rate, CEILINGS.copy_rate)["rows"]
    large = rows[-2]
    assert large["ceiling"]["bound"] == COMPUTE
    assert large["ceiling"]["share"] == pytest.approx(0.8)
    assert large["gflops"] == pytest.approx(80e3)


def test_markdown_of_a_gpu():
    measured = recorded(results_of_a_gpu()[:5], CEILINGS.mm_rate, CEILINGS.copy_rate, gpu={})
    head, _, line = markdown.cases_table(measured, "FIFO memory").splitlines()
    assert head.startswith("| FIFO memory | published, µs | torch.compile, µs | best SDPA, µs |")
    assert line == (
        "| bfloat16 64×16384 | 300 (4%) | not available | 200 (5%, flash) | 40.0 (27%) | 7.5 | 5.0 "
        "| 30.0 (36%, cuDNN) → 12.5 (86%) | 10.7 (compute) | 3.0 → 3.0 | 1.2e-02 → 4.6e-03 |"
    )
    spread = markdown.cases_table(measured, "FIFO memory", spread=True)
    assert "300 [270–330] (4%)" in spread


def test_the_momentum_memory_has_its_targets_and_tables(capsys):
    table = pytest.importorskip("benchmarks.table")
    results = results_of_the_momentum_memory()
    met = {
        outcome.figure: outcome.met
        for outcome in targets.outcomes(results, {}, targets.CPU_TARGETS)
    }
    assert met == {"× published eager": True, "extra MiB": True}
    table.print_table(results, CPU_UNITS, title="momentum memory")
    printed = capsys.readouterr().out
    assert printed.startswith("momentum memory")
    assert "16.00" in printed
    assert "4.00" in printed


def test_markdown_of_the_momentum_memory():
    measured = recorded(results_of_the_momentum_memory(), {"float32": 160e9}, 10e9)
    head, _, step, draws = markdown.cases_table(measured, "momentum memory").splitlines()
    assert head.startswith("| momentum memory | published, ms | rrd_kernels, ms | × published |")
    # 50 000 rows of both memories, and the indices, in 10 GB/s take 6 of the 125 ms.
    assert step == (
        f"| {targets.MOMENTUM.name} | 2000 (0.3%) | 125 (5%) | 16.0 | 5.98 (bandwidth) | 3.0 → 3.0 "
        "| 3.0e-05 → 2.0e-06 |"
    )
    # 8·8·65 bytes.
    assert (
        draws
        == f"| {DRAWS.name} | 64.0 (0.0%) | 16.0 (0.0%) | 4.0 | 0.00 (bandwidth) | 3.0 → 3.0 | – |"
    )


def test_the_copies_that_took_turns_are_told():
    rows = [replace(row(TINY, "rrd_kernels", 1.0), copies=count) for count in (9, 1)]
    measured = recorded(rows, {"bfloat16": 1e12}, 1e9)
    assert "copies" not in markdown.ceilings_text(measured)  # as of older records
    text = markdown.ceilings_text(measured | {"cache_bytes": 1 << 25})
    assert "1 to 9 copies of a memory took turns" in text
    assert "last cache, 32 MiB" in text


def test_every_implementation_has_its_share():
    failed = replace(row(TINY, "SDPA math", 400e-6), extra_bytes=None, no_memory="out of memory: x")
    results = [*results_of_a_gpu()[:5], failed]
    measured = recorded(results, CEILINGS.mm_rate, CEILINGS.copy_rate, gpu={})
    cases = markdown.sections(measured)["FIFO memory"]
    ceilings = Ceilings.of_record(measured)
    lines = implementation_tables.steps_table(cases, CUDA_UNITS, ceilings).splitlines()
    assert len(lines) == 2 + 6
    eager, compiled, _, cudnn, ours, math = (line.split(" | ")[1:] for line in lines[2:])
    assert eager[:3] == ["published eager", "300 [270–330] (4%)", "–"]
    assert compiled[:2] == ["torch.compile", "not available"]
    assert cudnn[1:3] == ["240 [216–264] (4%)", "30.0 [27.0–33.0] (36%)"]
    assert ours[2:6] == ["12.5 [11.2–13.8] (86%)", "86", "7", "3.0"]
    assert math[5] == "out of memory"


def test_parts_have_their_ceilings():
    bounds = (("forward", 0.5 * 10.7e-6), ("enqueue", 65536 / 4e12))
    one = row(TINY, "published eager", 300e-6)
    parts = {
        name: PartTiming(Spread(10 * s, 9 * s, 11 * s), 5, {}, work.of_part(TINY, name))
        for name, s in bounds
    }
    measured = recorded([replace(one, parts=parts)], CEILINGS.mm_rate, 4e12)
    table = implementation_tables.parts_table(markdown.sections(measured)["FIFO memory"])
    head, _, line = table.splitlines()
    assert head == (
        "| FIFO memory | implementation | forward, µs [p20–p80] | enqueue, µs [p20–p80] |"
    )
    assert "53.5 [48.1–58.8] (10%, compute) | 0.16 [0.15–0.18] (5%, bandwidth) |" in line
    assert implementation_tables.parts_table({TINY: {"ours": {"implementation": "ours"}}}) == ""
