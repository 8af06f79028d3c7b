"""What was measured is recorded, tabulated, drawn and shown in the README as it was."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import host_time, markdown, pictures, readme, record, report, targets
from benchmarks.cases import Case, DrawCase, axes_for, cases_for
from benchmarks.ceilings import BANDWIDTH, COMPUTE, Ceilings
from benchmarks.errors import Errors
from benchmarks.figures import CPU_UNITS, CUDA_UNITS
from benchmarks.measure import Spread
from benchmarks.run import Absent, Row, Timing

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
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
        row(TINY, "SDPA flash", 200e-6, 50e-6),
        row(TINY, "SDPA cuDNN", 200e-6, 30e-6),
        row(TINY, "rrd_kernels", 40e-6, 12.5e-6, 4.56e-3, published_eager=7.5, SDPA_cuDNN=5.0),
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
        "| bfloat16 64×16384 | 300 | not available | 200 (cuDNN) | 40.0 | 7.5 | 5.0 "
        "| 30.0 → 12.5 | 86% (compute) | 3.0 → 3.0 | 1.2e-02 → 4.6e-03 |"
    )
    spread = markdown.cases_table(measured, "FIFO memory", spread=True)
    assert "300 [270–330]" in spread


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
    # 50 000 rows of both memories in 10 GB/s take 6 of the 125 ms, and the products 5.
    assert step == (
        f"| {targets.MOMENTUM.name} | 2000 | 125 | 16.0 | 5% (bandwidth) | 3.0 → 3.0 "
        "| 3.0e-05 → 2.0e-06 |"
    )
    assert draws == f"| {DRAWS.name} | 64.0 | 16.0 | 4.0 | 0% (bandwidth) | 3.0 → 3.0 | – |"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A record of tiny sizes, written where another lay already."""
    folder = tmp_path_factory.mktemp("results")
    output = folder / "record.json"
    output.write_text("{}")
    command = [
        sys.executable,
        "-m",
        "benchmarks.report",
        "--device",
        "cpu",
        "--quick",
        "--no-memory",
    ]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert output.read_text() == "{}"
    return folder / "record-2.json", done.stdout


class TestCommand:
    def test_every_part_is_in_the_record(self, written):
        path, _ = written
        measured = record.load(path)
        names = {(row["implementation"], row["case"]["batch"]) for row in measured["rows"]}
        assert {("published eager", 16), ("SDPA", 16), ("rrd_kernels", 8)} <= names
        for timed in (row for row in measured["rows"] if "seconds" in row):
            assert timed["seconds"]["p20"] <= timed["seconds"]["median"] <= timed["seconds"]["p80"]
            assert timed["ceiling"]["share"] > 0
        assert measured["machine"]["after"]["copy_gbytes_per_second"] > 0
        assert measured["versions"]["torch"] == torch.__version__
        assert "--quick" in measured["command"]
        assert {one["implementation"] for one in measured["breakdowns"]} == {
            "published eager",
            "SDPA",
            "rrd_kernels",
        }
        assert all(one["parts"] for one in measured["breakdowns"])
        for axis in axes_for(CPU, quick=True):
            for one in (one for one in measured["scaling"] if one["axis"]["name"] == axis.name):
                assert [point["value"] for point in one["points"]] == list(axis.values)

    def test_layers_of_the_host_time(self, written):
        path, _ = written
        profile = record.load(path)["host_time"]
        layers = {layer["name"]: layer["seconds"]["median"] for layer in profile["layers"]}
        assert len(layers) == 7
        assert layers["operator: dispatcher, allocations"] > 0
        assert profile["step"]["median"] > layers["operator: dispatcher, allocations"]

    def test_tables_are_printed_and_written(self, written):
        path, printed = written
        text = path.with_suffix(".md").read_text()
        for part in ("FIFO memory", "momentum memory", "Scaling", "host", "rrd_kernels"):
            assert part in printed
            assert part in text

    def test_pictures_name_their_record(self, written):
        pytest.importorskip("matplotlib")
        path, _ = written
        measured = record.load(path)
        text = path.with_suffix(".md").read_text()
        assert pictures.available(measured) == list(pictures.TITLES)
        for name in pictures.TITLES:
            picture = path.parent / pictures.file_name(path.stem, name)
            assert pictures.texts(picture)[pictures.KEY] == record.digest(measured)
            assert f"({picture.name})" in text

    def test_another_record_has_another_digest(self, written):
        path, _ = written
        measured = record.load(path)
        changed = json.loads(json.dumps(measured))
        changed["rows"][0]["seconds"]["median"] *= 1.001
        assert record.digest(changed) != record.digest(measured)
        assert record.digest(dict(reversed(measured.items()))) == record.digest(measured)

    def test_equal_records_give_equal_pictures(self, written, tmp_path):
        pytest.importorskip("matplotlib")
        path, _ = written
        for drawn in pictures.draw_all(record.load(path), tmp_path, path.stem):
            assert drawn.read_bytes() == (path.parent / drawn.name).read_bytes()

    def test_without_matplotlib_all_but_the_pictures_is_written(
        self, written, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        for name in [name for name in sys.modules if name.startswith("benchmarks.draw")]:
            monkeypatch.delitem(sys.modules, name)
        path, _ = written
        report.write_beside(tmp_path / "record.json", record.load(path))
        assert "benchmarks.pictures record.json" in capsys.readouterr().err
        assert [made.name for made in tmp_path.iterdir()] == ["record.md"]


def test_a_layer_of_the_host_time_is_the_median_difference(monkeypatch):
    calls = ("kernels", "operator", "autograd", "functional", "projected", "module", "step")
    costs = {name: 2.0**number for number, name in enumerate(calls)}

    def times(timers, seconds):
        """Three rounds, of which the last takes ten times as long."""
        scale = {"one": 1.0, "batch": 10.0, "full": 1000.0}
        taken = {key: scale[key[0]] * costs[key[1]] for key in timers}
        return {key: [cost, cost, 10 * cost] for key, cost in taken.items()}

    monkeypatch.setattr(host_time, "interleaved", times)
    found = host_time.profile(2, 4, CPU, 0.0)
    assert [layer.seconds.median for layer in found.layers] == [999, 2, 2, 4, 80, 16, 320]
    assert found.step.median == 64000
    assert found.launches is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "float8"], "no case's name contains 'float8'"),
        (["--seconds", "-1"], "must not be negative"),
        (["--parts", "all"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.parse_arguments(["--device", "cpu", *arguments])
    assert message in capsys.readouterr().err


def test_some_cases_alone():
    chosen = report.parse_arguments(["--device", "cpu", "--cases", "256x65536"])
    assert {case.name for case in chosen.cases} == {"float32 256×65536", "bfloat16 256×65536"}
    assert chosen.parts == ["cases"]
    assert len(report.parse_arguments(["--device", "cpu"]).cases) == len(cases_for(CPU))


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', "no JSON"])
def test_other_files_are_no_records(text, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"not a record|Expecting value"):
        record.load(path)


class TestReadme:
    def test_it_shows_committed_records(self):
        text = readme.README.read_text()
        shown = readme.shown(text)
        assert {section.memory for _, section in shown} == {"FIFO memory", "momentum memory"}
        for match, section in shown:
            assert match[0] == section.text
            for look in record.load(section.path)["machine"].values():
                assert look["busy_cores"] < 0.2

    def test_its_pictures_are_of_the_record_that_it_names(self):
        for _, section in readme.shown(readme.README.read_text()):
            measured = record.load(section.path)
            for name in pictures.available(measured):
                path = readme.picture(measured, name)
                if path.name in section.text:
                    assert pictures.texts(path)[pictures.KEY] == record.digest(measured)

    def test_its_pictures_are_drawn_as_they_would_be_now(self, tmp_path):
        matplotlib = pytest.importorskip("matplotlib")
        for _, section in readme.shown(readme.README.read_text()):
            measured = record.load(section.path)
            for drawn in pictures.draw_all(measured, tmp_path, readme.stem(measured)):
                shown = readme.PICTURES / drawn.name
                same_software = matplotlib.__version__ in pictures.texts(shown)["Software"]
                if drawn.name in section.text and same_software:
                    assert drawn.read_bytes() == shown.read_bytes()

    def test_a_new_record_takes_the_place_of_the_old(self, monkeypatch):
        text = readme.README.read_text()
        [(_, momentum)] = [one for one in readme.shown(text) if one[1].memory != "FIFO memory"]
        assert readme.updated(text, momentum.path) == text
        emptied = text.replace("| float32 momentum", "| float64 momentum")
        assert readme.updated(emptied, momentum.path) == text
        with pytest.raises(ValueError, match="no place for this kind"):
            readme.updated("# a README without figures", momentum.path)

    def test_tables_and_pictures_of_a_whole_record(self, written, monkeypatch):
        path, _ = written
        monkeypatch.setattr(readme, "ROOT", path.parent)
        monkeypatch.setattr(readme, "PICTURES", path.parent / "pictures")
        text = readme.Section("FIFO memory", path).text
        assert text.startswith("<!-- benchmark of the FIFO memory: record-2.json -->\n`python -m")
        assert "\n| FIFO memory |" in text
        for name, title in pictures.TITLES.items():
            assert f"![{title}](pictures/cpu-{name}.png)" in text
        assert "time grows as" in text
        assert "Python: checks and defaults" in text
        assert text.endswith("<!-- end of benchmark -->\n")
