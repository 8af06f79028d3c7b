"""What was measured is recorded, drawn and shown in the README as it was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import (
    breakdown,
    compare,
    hardware,
    host_time,
    markdown,
    paths,
    pictures,
    readme,
    record,
    report,
    run,
    scaling,
)
from benchmarks.cases import axes_for, cases_for
from benchmarks.distributed import __main__ as distributed
from benchmarks.implementations import COMPILED
from benchmarks.peers import Fused, PublishedEager
from benchmarks.run import run_case

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


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
        "--compile",
        "none",
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
        assert {
            ("published eager", 16),
            ("SDPA flash", 16),
            ("SDPA math", 16),
            ("rrd_kernels", 8),
        } <= names
        for timed in (row for row in measured["rows"] if "seconds" in row):
            assert timed["seconds"]["p20"] <= timed["seconds"]["median"] <= timed["seconds"]["p80"]
            assert timed["ceiling"]["share"] > 0
        assert measured["machine"]["after"]["copy_gbytes_per_second"] > 0
        assert measured["versions"]["torch"] == torch.__version__
        assert "--quick" in measured["command"]
        assert {one["implementation"] for one in measured["breakdowns"]} == {
            "published eager",
            "SDPA math",
            "SDPA flash",
            "rrd_kernels",
        }
        assert all(one["parts"] for one in measured["breakdowns"])
        for timed in (row for row in measured["rows"] if row.get("parts")):
            assert all(part["ceiling"]["share"] > 0 for part in timed["parts"].values())
        assert measured["cache_bytes"] == hardware.cache_bytes(CPU)
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
        for part in (
            *("FIFO memory", "momentum memory", "Scaling", "host", "rrd_kernels"),
            *("forward, µs", "update, µs", "share; rounds; extra MiB", "of its ceiling"),
        ):
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


def test_what_was_measured_before_an_interrupt_is_kept(tmp_path, monkeypatch):
    def interrupted(case, *settings):
        if case != cases_for(CPU, quick=True)[0]:
            raise KeyboardInterrupt
        return run_case(case, 0.0, memory=False, without=COMPILED)

    monkeypatch.setattr(report, "run_case", interrupted)
    path = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        report.main(["--device", "cpu", "--quick", "--compile", "none", "--output", str(path)])
    measured = record.load(path)
    assert len(measured["rows"]) == 4
    assert measured["machine"]["after"] is None
    assert "rrd_kernels" in path.with_suffix(".md").read_text()


def test_a_part_that_fails_ends_no_other(tmp_path, monkeypatch, capsys):
    """Nor does it take with it what was measured before, whatever ends the process."""
    path = tmp_path / "record.json"
    saved = []

    def broken(*settings):
        saved.append(record.load(path)["rows"])
        raise RuntimeError("the device has gone")

    def one_case(case, *settings):
        if case != cases_for(CPU, quick=True)[0]:
            raise torch.OutOfMemoryError("no room for the batches")
        return run_case(case, 0.0, memory=False, without=COMPILED)

    monkeypatch.setattr(report, "run_case", one_case)
    monkeypatch.setattr(host_time, "profile", broken)
    options = ["--device", "cpu", "--quick", "--parts", "cases", "host", "breakdown"]
    assert report.main([*options, "--compile", "none", "--output", str(path)]) == 1
    assert len(saved[0]) == 4
    measured = record.load(path)
    assert measured["host_time"] is None
    assert all(one["parts"] for one in measured["breakdowns"])
    assert measured["machine"]["after"] is not None
    others = [case.name for case in cases_for(CPU, quick=True)[1:]]
    expected = [f"{name}: OutOfMemoryError: no room for the batches" for name in others]
    expected.append("the host's time: RuntimeError: the device has gone")
    assert measured["failures"] == expected
    printed = capsys.readouterr().err
    assert all(failure in printed for failure in expected)


class NoRoomLater(PublishedEager):
    """Agrees, and then fails for want of memory."""

    calls = 0

    def forward(self, *batch):
        NoRoomLater.calls += 1
        if NoRoomLater.calls > 2:
            raise torch.OutOfMemoryError("no room beside the others")
        return super().forward(*batch)


def test_a_step_that_fails_when_it_is_timed_leaves_the_others(monkeypatch):
    monkeypatch.setattr(run, "implementations", lambda case, device: [NoRoomLater, Fused])
    NoRoomLater.calls = 0
    broken, ours = run_case(cases_for(CPU, quick=True)[0], 0.0, memory=False)
    assert (broken.outcome, broken.reason) == (
        "out of memory",
        "OutOfMemoryError: no room beside the others",
    )
    assert ours.seconds.median > 0
    assert ours.parts


def test_records_of_small_sizes_are_called_so():
    assert "-quick-" in record.default_path(CPU, quick=True).name
    assert "quick" not in record.default_path(CPU).name


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


def off(call, where):
    """``call``, with something wrong."""

    def wrong(self, *arguments):
        result = call(self, *arguments)
        if where == "loss":
            return 1.001 * result
        if where == "gradient":
            return result[0], 1.001 * result[1]
        self.memory.queue[0] = -self.memory.queue[0]
        return result

    return wrong


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("kernels", "gradient"),
        ("operator", "loss"),
        ("operator", "memory"),
        ("autograd", "loss"),
        ("_functional", "loss"),
        ("module", "loss"),
        ("module", "memory"),
    ],
)
def test_a_wrong_call_has_no_host_time(name, where, monkeypatch):
    monkeypatch.setattr(host_time.Calls, name, off(getattr(host_time.Calls, name), where))
    with pytest.raises(ArithmeticError, match=r"has Errors|writes rows"):
        host_time.profile(4, 16, CPU, 0.0)


def test_a_checked_call_leaves_the_memory_as_it_was(device):
    for size in ((4, 16), (4, 4), (1, 2)):
        calls = host_time.Calls(*size, device)
        before = calls.memory.queue.clone()
        calls.check()
        assert torch.equal(calls.memory.queue, before)
        assert calls.memory.queue_ptr.item() == 0


class Wrong(Fused):
    def __call__(self, z_s, z_t):
        loss, grad = super().__call__(z_s, z_t)
        return loss, 1.001 * grad


def test_a_wrong_step_has_no_breakdown(monkeypatch):
    monkeypatch.setattr(breakdown, "implementations", lambda case, device: [PublishedEager, Wrong])
    published, wrong = breakdown.breakdowns(cases_for(CPU, quick=True)[0], CPU, 1)
    assert published.parts
    assert not wrong.parts
    assert "ArithmeticError" in wrong.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "float8"], "no case's name contains 'float8'"),
        (["--seconds", "-1"], "must not be negative"),
        (["--parts", "all"], "invalid choice"),
        (["--parts", "host", "--cases", "float32"], "runs the part cases alone; got --parts host"),
        (["--parts", "cases", "host", "--cases", "float32"], "got --parts cases host"),
        (["--output", "record.md"], "record.md does not end in .json"),
        (["--output", str(ROOT)], "does not end in .json"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.parse_arguments(["--device", "cpu", *arguments])
    assert message in capsys.readouterr().err


def test_where_no_record_can_be_is_refused_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    paths = {
        "folder.json": "folder.json is a folder",
        "file/record.json": "file",
        f"{'long' * 99}.json": "name too long",
    }
    for name, message in paths.items():
        with pytest.raises(SystemExit, match="2"):
            report.main(["--device", "cpu", "--quick", "--output", str(tmp_path / name)])
        error = capsys.readouterr().err
        assert "--output" in error
        assert message in error
    assert sorted(made.name for made in tmp_path.iterdir()) == ["file", "folder.json"]


@pytest.mark.parametrize("there", ["record.json", "record.md", "record-scaling.png"])
def test_no_file_that_exists_is_written_over(there, tmp_path):
    (tmp_path / there).write_text("kept")
    (tmp_path / "record-2.md").write_text("kept")
    assert parsed(tmp_path).output == tmp_path / "record-3.json"
    assert len(list(tmp_path.iterdir())) == 2


def parsed(folder, *arguments):
    return report.parse_arguments(
        ["--device", "cpu", "--output", str(folder / "record.json"), *arguments]
    )


def test_some_cases_alone(tmp_path):
    chosen = parsed(tmp_path, "--cases", "256x65536")
    assert {case.name for case in chosen.cases} == {"float32 256×65536", "bfloat16 256×65536"}
    assert chosen.parts == ["cases"]
    assert parsed(tmp_path, "--cases", "256x65536", "--parts", "cases").cases == chosen.cases
    assert len(parsed(tmp_path).cases) == len(cases_for(CPU))


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', "no JSON"])
def test_other_files_are_no_records(text, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"file.json is (not a record|no JSON)"):
        record.load(path)


RANKS = sorted(record.RESULTS.glob("ranks-*.json"))


@pytest.mark.parametrize("path", RANKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("module", "options"),
    [(compare, "{0} {0}"), (readme, "{0}"), (pictures, "{0}"), (distributed, "--card {0}")],
)
def test_a_record_of_ranks_is_refused(module, options, path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", *(one.format(path) for one in options.split())])
    with pytest.raises(SystemExit) as ended:
        module.main()
    text = f"{ended.value.code} {capsys.readouterr().err}"
    assert f"{path.name} is a record of several ranks" in text


@pytest.mark.parametrize(
    ("outcome", "fails"),
    [(None, False), ("out of memory", False), ("not measured", False), ("not available", True)],
)
def test_a_size_at_which_the_kernels_are_wrong_fails_the_run(outcome, fails):
    axis = axes_for(CPU, quick=True)[0]
    point = scaling.Point(axis.values[0], outcome=outcome, reason="a loss that is off")
    measured = record.Measured(record.Machine({}, 1.0, 0.0, {}))
    measured.series.append(scaling.Series(axis, "SDPA flash", [point], None))
    assert report.failures(measured) == []
    measured.series.append(scaling.Series(axis, "rrd_kernels", [point], None))
    assert bool(report.failures(measured)) == fails


def speedups(path):
    """How many times faster than the published code a record has the FIFO memory's cases."""
    cases = markdown.sections(record.load(path))["FIFO memory"].values()
    return [rows[Fused.name]["speedup"][PublishedEager.name] for rows in cases]


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

    def test_its_first_sentence_is_the_record_s(self):
        text = readme.README.read_text()
        fifo = [one for _, one in readme.shown(text) if one.memory == "FIFO memory"]
        times = [
            time
            for shown in fifo
            if "amx_bf16" not in record.load(shown.path)["kernels"].values()
            for time in speedups(shown.path)
        ]
        assert f"{min(times):.1f} to {max(times):.1f} times faster on" in text.split("\n\n")[1]

    def test_its_pictures_are_drawn_as_they_would_be_now(self, tmp_path):
        matplotlib = pytest.importorskip("matplotlib")
        for _, section in readme.shown(readme.README.read_text()):
            measured = record.load(section.path)
            for drawn in pictures.draw_all(measured, tmp_path, readme.kind_of(measured)):
                shown = readme.PICTURES / drawn.name
                same_software = matplotlib.__version__ in pictures.texts(shown)["Software"]
                if drawn.name in section.text and same_software:
                    assert drawn.read_bytes() == shown.read_bytes()

    def test_a_new_record_takes_the_place_of_the_old(self, monkeypatch):
        text = readme.README.read_text()
        [(_, momentum)] = [one for one in readme.shown(text) if one[1].memory != "FIFO memory"]
        assert readme.updated(text, momentum.path, momentum.memory) == text
        emptied = text.replace("| float32 momentum", "| float64 momentum")
        assert readme.updated(emptied, momentum.path, momentum.memory) == text
        first, *_ = (section for _, section in readme.shown(text) if section != momentum)
        both = readme.updated(text, first.path)
        assert readme.Section(momentum.memory, first.path).text in both
        assert readme.updated(both, momentum.path, momentum.memory) == text
        with pytest.raises(ValueError, match="no place for this kind"):
            readme.updated("# a README without figures", momentum.path)

    def test_a_record_outside_the_repository_is_refused(self, tmp_path):
        text = readme.README.read_text()
        _, section = readme.shown(text)[0]
        copied = Path(shutil.copy(section.path, tmp_path))
        with pytest.raises(ValueError, match=f"{copied} is outside the repository"):
            readme.updated(text, copied)

    def test_tables_and_pictures_of_a_whole_record(self, written, monkeypatch):
        path, _ = written
        monkeypatch.setattr(readme, "ROOT", path.parent)
        monkeypatch.setattr(paths, "ROOT", path.parent)
        monkeypatch.setattr(readme, "PICTURES", path.parent / "pictures")
        text = readme.Section("FIFO memory", path).text
        kind = readme.kind_of(record.load(path))
        assert kind.startswith("cpu-")
        assert text.startswith("<!-- benchmark of the FIFO memory: record-2.json -->\n`python -m")
        assert "\n| FIFO memory |" in text
        for name, title in pictures.TITLES.items():
            assert f"![{title}](pictures/{kind}-{name}.png)" in text
        assert "time grows as" in text
        assert "Python: checks and defaults" in text
        assert text.endswith("<!-- end of benchmark -->\n")
