"""What counts as moved between two records, and what is refused."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.cases import Case

ROOT = Path(__file__).resolve().parents[1]
CASE = Case(64, 16384, "float32")
SPREADS = {"published eager": (9.0, 10.0, 11.0), "rrd_kernels": (3.8, 4.0, 4.4)}


def seconds(p20: float, median: float, p80: float) -> dict[str, float]:
    return {"median": median / 1e3, "p20": p20 / 1e3, "p80": p80 / 1e3}


def measured() -> dict:
    rows = [
        {
            "case": vars(CASE),
            "implementation": name,
            "seconds": seconds(*spread),
            "rounds": 100,
            "extra_bytes": 1 << 20,
        }
        for name, spread in SPREADS.items()
    ]
    point = {"seconds": seconds(1.0, 1.0, 1.0), "rounds": 1, "extra_bytes": None, "value": 128}
    point["outcome"] = None
    axis = {"name": "rows", "case": {**vars(CASE), "rows": 0}, "values": [128]}
    return {
        "cpu": "one",
        "threads": 2,
        "kernels": {"float32": "avx512"},
        "versions": {},
        "machine": {"before": {"mm_gflops": {"float32": 100.0}, "copy_gbytes_per_second": 10.0}},
        "rows": rows,
        "scaling": [{"axis": axis, "implementation": "rrd_kernels", "points": [point]}],
    }


def changed(name: str = "rrd_kernels", **fields) -> dict:
    after = copy.deepcopy(measured())
    [row] = [row for row in after["rows"] if row["implementation"] == name]
    row |= fields
    return after


def run(before: dict, after: dict, folder: Path, *options: str) -> int:
    paths = []
    for name, one in (("before", before), ("after", after)):
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(one))
    return compare.main([*map(str, paths), *options])


@pytest.mark.parametrize(
    ("spread", "verdict", "exit_code"),
    [
        ((4.5, 4.6, 4.7), compare.SLOWER, 1),  # 20 % of the rounds above 4.4 before, all but 20 now
        ((4.39, 4.6, 4.7), compare.SAME, 0),  # the intervals touch
        ((3.0, 4.2, 5.0), compare.SAME, 0),
        ((3.5, 3.6, 3.7), compare.FASTER, 0),
        ((3.5, 3.6, 3.81), compare.SAME, 0),
    ],
)
def test_a_time_has_moved_when_the_intervals_lie_apart(spread, verdict, exit_code, tmp_path):
    after = changed(seconds=seconds(*spread))
    [ours] = [
        move
        for move in compare.moves(measured(), after)
        if move.name == compare.Name(CASE.name, "rrd_kernels")
    ]
    assert ours.verdict == verdict
    assert run(measured(), after, tmp_path) == exit_code


def test_a_slower_peer_is_shown_but_is_no_regression(tmp_path, capsys):
    after = changed("published eager", seconds=seconds(18.0, 20.0, 21.0))
    assert run(measured(), after, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "| 10.0 [9.00–11.0] | 20.0 [18.0–21.0] | 2.00 | slower |" in printed
    assert "rrd_kernels |" not in printed
    run(measured(), after, tmp_path, "--all")
    assert "rrd_kernels |" in capsys.readouterr().out


def test_what_fails_now_is_a_regression(tmp_path, capsys):
    after = measured()
    after["rows"][1] = {"case": vars(CASE), "implementation": "rrd_kernels", "outcome": "broken"}
    assert run(measured(), after, tmp_path) == 1
    assert "fails now" in capsys.readouterr().out
    assert run(after, measured(), tmp_path) == 0
    assert "works now" in capsys.readouterr().out


def test_what_was_not_run_has_not_moved(tmp_path, capsys):
    """As after `make bench ARGS="--cases ..."`."""
    after = measured()
    del after["rows"][1]
    assert run(measured(), after, tmp_path) == 0
    assert "rrd_kernels |" not in capsys.readouterr().out


def test_what_was_not_tried_has_not_failed():
    before = measured()
    untried = {"case": vars(CASE), "implementation": "torch.compile", "outcome": "not measured"}
    before["rows"].append(untried | {"reason": "not compiled at this size"})
    after = measured()
    row = {**after["rows"][0], "implementation": "torch.compile"}
    after["rows"].append(row)
    assert {move.verdict for move in compare.moves(before, after)} == {compare.SAME}


def test_a_size_too_large_for_the_reference_has_not_failed(tmp_path):
    after = measured()
    untried = {"seconds": None, "rounds": 0, "outcome": "not measured"}
    after["scaling"][0]["points"][0] |= untried
    assert run(measured(), after, tmp_path) == 0
    assert run(after, measured(), tmp_path) == 0


def test_a_run_that_was_cut_off(tmp_path, capsys):
    """Less was compared than it seems, so that it must not pass for a run without regressions."""
    after = measured()
    after["machine"]["after"] = None
    assert run(measured(), after, tmp_path) == 1
    assert "AFTER was cut off: it did not look at the machine again" in capsys.readouterr().out
    after = measured() | {"failures": ["the host's time: RuntimeError: broken"]}
    assert run(measured(), after, tmp_path) == 1
    assert "AFTER was cut off: the host's time: RuntimeError: broken" in capsys.readouterr().out
    assert run(after, measured(), tmp_path) == 0


def test_running_out_of_memory_is_a_figure_that_fails():
    before, after = measured(), measured()
    failed = {"seconds": None, "rounds": 0, "outcome": "out of memory"}
    after["scaling"][0]["points"][0] |= failed
    assert [move.verdict for move in compare.moves(before, after)] == [
        compare.SAME,
        compare.SAME,
        compare.FAILS,
    ]


def test_too_few_rounds_tell_only_that_it_runs():
    before, after = measured(), measured()
    after["scaling"][0]["points"][0]["seconds"] = seconds(9.0, 9.0, 9.0)
    assert {move.verdict for move in compare.moves(before, after)} == {compare.SAME}


def test_an_older_name_is_the_same_implementation():
    before, after = measured(), measured()
    before["rows"][0]["implementation"] = "SDPA"
    after["rows"][0]["implementation"] = "SDPA flash"
    assert {move.name.implementation for move in compare.moves(before, after)} == {
        "SDPA flash",
        "rrd_kernels",
    }


def test_one_size_on_two_axes_is_two_figures():
    one = measured()
    (series,) = one["scaling"]
    other = json.loads(json.dumps(series))
    other["axis"] |= {"name": "batch"}
    other["points"][0]["value"] = series["axis"]["case"]["batch"]
    other["axis"]["case"]["rows"] = series["points"][0]["value"]
    one["scaling"].append(other)
    assert len(compare.figures(one)) == len(compare.figures(measured())) + 1


def test_memory_moves_by_more_than_a_page(tmp_path, capsys):
    run(measured(), changed(extra_bytes=3 << 20), tmp_path)
    assert "extra MiB" not in capsys.readouterr().out
    assert run(measured(), changed(extra_bytes=4 << 20), tmp_path) == 1
    assert run(changed(extra_bytes=4 << 20), measured(), tmp_path) == 0
    grown = changed("published eager", extra_bytes=9 << 20)
    assert run(measured(), grown, tmp_path) == 0
    run(measured(), changed(extra_bytes=4 << 20), tmp_path)
    assert "+3.0" in capsys.readouterr().out


def test_replays_parts_and_points_of_series_count():
    one = measured()
    one["rows"][1]["replay"] = {"seconds": seconds(1, 1, 1), "rounds": 50, "speedup": {}}
    one["rows"][1]["parts"] = {"enqueue": {"seconds": seconds(1, 1, 1), "rounds": 50}}
    names = {name.what for name in compare.figures(one)}
    scaled = "float32 64×128, scaling of rows"
    alone = {f"{CASE.name}, in a graph", f"{CASE.name}, enqueue"}
    assert names == {CASE.name, scaled} | alone


def test_the_machine_is_compared_too(tmp_path, capsys):
    after = measured()
    after["machine"]["before"]["mm_gflops"]["float32"] = 50.0
    run(measured(), after, tmp_path)
    assert "| torch.mm in float32, GFLOP/s | 100 | 50 | 0.50 |" in capsys.readouterr().out


def test_a_memory_in_cache_is_told_from_copies_that_take_turns(tmp_path, capsys):
    run(measured(), measured(), tmp_path)
    assert "take turns" not in capsys.readouterr().out
    run(measured(), measured() | {"cache_bytes": 1 << 25}, tmp_path)
    assert "copies of them take turns" in capsys.readouterr().out.replace("\n", " ")


def test_other_devices_are_refused_unless_asked_for(tmp_path, capsys):
    after = measured() | {"cpu": "another"}
    with pytest.raises(SystemExit, match="2"):
        run(measured(), after, tmp_path)
    assert "different devices" in capsys.readouterr().err
    assert run(measured(), after, tmp_path, "--across-devices") == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1}'])
def test_what_is_no_record_is_refused(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        compare.main([str(path), str(path)])


def test_records_without_a_common_figure_are_refused(tmp_path, capsys):
    after = measured() | {"rows": [], "scaling": []}
    with pytest.raises(SystemExit, match="2"):
        run(measured(), after, tmp_path)
    assert "no figure in common" in capsys.readouterr().err


def test_command(tmp_path):
    """A committed record against itself, and a file that is not there."""
    [record, *_] = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    command = [sys.executable, "-m", "benchmarks.compare", str(record)]
    for other, exit_code in ((record, 0), (tmp_path / "absent.json", 2)):
        done = subprocess.run(
            [*command, str(other)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == exit_code, done.stderr
    assert "absent.json" in done.stderr
