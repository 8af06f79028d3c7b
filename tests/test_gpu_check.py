"""make gpu-check writes down what happened, whatever happens."""

import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import run_files
import stages
import torch
from gpu_check import How
from stages import Stage

from benchmarks.report import record

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, **settings) -> Stage:
    return Stage(settings.pop("name", "stage"), [sys.executable, "-c", code], **settings)


def on_stand_in(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tests/gpu_check.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    done = on_stand_in("--output", str(tmp_path / "check.json"))
    assert done.returncode == 2
    assert "No GPU" in done.stderr
    assert not list(tmp_path.iterdir())


#: By part: its stages, and what is in the report of each.
STAGES = {
    "first": {
        "build": "exit_code",
        "kernels": "summary",
        "smoke": "exit_code",
        "correctness": "cases",
        "bfloat16": "record",
    },
    "rest": {
        "build": "exit_code",
        "kernels": "summary",
        "official sizes": "record",
        "tests": "summary",
        "memcheck": "reason",
        "sweep": "sweep",
    },
}


@pytest.mark.long
@pytest.mark.parametrize("part", STAGES)
def test_on_the_stand_in_a_part_runs_to_its_end(part, tmp_path):
    path = tmp_path / "check.json"
    done = on_stand_in(f"--part={part}", f"--output={path}", "--stand-in", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    report = json.loads(path.read_text())
    assert report["passed"]
    assert {"gpu", "versions", "date"} <= report.keys()
    assert list(report["stages"]) == list(STAGES[part])
    for name, found in STAGES[part].items():
        assert found in report["stages"][name], name
    assert "kernels: " in done.stdout
    assert record.load(path)["rows"]


@pytest.mark.parametrize(
    ("code", "settings", "expected"),
    [
        ("print('done')", {}, ("passed", "done")),
        ("import sys; sys.exit('broken')", {}, ("failed", "broken")),
        (
            "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('what there is')",
            {},
            ("timed out", "what there is"),
        ),
        (
            "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)",
            {},
            ("timed out", ""),
        ),
        ("", {"read": lambda output: {}[output]}, ("failed", "")),
        ("import sys; print(sys.argv)", {"timed": True}, ("passed", "--within")),
    ],
)
def test_what_comes_of_a_command(code, settings, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "GRACE_SECONDS", 2.0)
    result = stages.run(python(code, **settings), tmp_path, 2.0)
    assert result["status"] == expected[0]
    assert expected[1] in result["output_tail"]


def test_a_command_that_is_not_there(tmp_path):
    result = stages.run(Stage("absent", ["no such program"]), tmp_path, 60)
    assert result["status"] == "failed"


def test_every_stage_is_in_the_report(tmp_path):
    planned = [
        python("", name="build"),
        python("raise SystemExit(1)", name="fails"),
        python("", name="needless", skip="not here"),
        python("", name="benchmark", read=lambda output: {"record": {"rows": []}}),
    ]
    path = tmp_path / "folder" / "check.json"
    assert not gpu_check.check(planned, {"gpu": "none"}, path, 60)
    report = json.loads(path.read_text())
    found = {name: result["status"] for name, result in report["stages"].items()}
    assert found == {
        "build": "passed",
        "fails": "failed",
        "needless": "skipped",
        "benchmark": "passed",
    }
    assert report["gpu"] == "none"
    assert report["stages"]["benchmark"]["record"] == {"rows": []}
    assert report["passed"] is False


def test_a_check_that_is_killed_leaves_what_its_stage_had_found(tmp_path):
    found, path = tmp_path / "found", tmp_path / "check.json"
    stage = f"import pathlib, time; pathlib.Path({str(found)!r}).write_text('7'); time.sleep(60)"
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import gpu_check, stages
stages.INTERVAL = 0.1
found = pathlib.Path({str(found)!r})
read = lambda output: {{"found": int(found.read_text())}} if found.exists() else {{}}
stage = stages.Stage("slow", [sys.executable, "-c", {stage!r}], read=read)
gpu_check.check([stage], {{}}, pathlib.Path({str(path)!r}), 60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    while not (path.exists() and '"found"' in path.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.communicate()
    result = json.loads(path.read_text())["stages"]["slow"]
    assert (result["status"], result["found"]) == ("running", 7)


def test_nothing_is_run_on_a_broken_build(tmp_path):
    planned = [python("raise SystemExit(1)", name="build"), python("", name="tests")]
    report = {}
    assert not gpu_check.check(planned, report, tmp_path / "check.json", 60)
    assert report["stages"]["tests"] == {"status": "skipped", "reason": "the build has not passed"}


def test_a_stage_leaves_the_later_ones_their_least(tmp_path):
    planned = [
        python("", name="build"),
        python("import time; time.sleep(60)", name="slow"),
        python("", name="last", least=60.0),
        python("", name="needless", least=60.0, skip="not here"),
    ]
    report = {}
    gpu_check.check(planned, report, tmp_path / "check.json", 63)
    assert report["stages"]["slow"]["status"] == "timed out"
    assert report["stages"]["last"]["status"] == "passed"


@pytest.mark.parametrize("pack", [None, Path("pack")])
@pytest.mark.parametrize("part", gpu_check.PARTS)
def test_the_build_has_a_minute_and_every_other_stage_its_least(part, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *args, **kwargs: "compute-sanitizer")
    _, *others = gpu_check.plan(How(tmp_path, pack), [part])
    assert all(stage.least > stages.MARGIN for stage in others if stage.timed)
    assert sum(stage.least for stage in others) + 60 <= gpu_check.seconds_of(part, pack)
    minutes = {"first": 2.5, "rest": 3.5}[part] + (0.0 if pack else 2.5)  # as CONTRIBUTING says
    assert gpu_check.seconds_of(part, pack) + stages.GRACE_SECONDS <= 60 * minutes
    assert ("kernels" in [stage.name for stage in others]) == (pack is None)


def test_both_parts_fit_into_a_quarter_of_an_hour():
    """Without a pack too, and with a machine that takes two minutes to start for each."""
    seconds = [gpu_check.seconds_of(part, None) for part in gpu_check.PARTS]
    assert sum(seconds) + 2 * (stages.GRACE_SECONDS + 120) <= 15 * 60


@pytest.mark.parametrize("refused", [True, False])
def test_a_pack_that_a_driver_refuses_is_done_without(refused, tmp_path, monkeypatch):
    script = tmp_path / "python"
    refusing = f'[ "${gpu_check.VARIABLE}" ] && exit 1' if refused else ""
    script.write_text(f"#!/bin/sh\n{refusing}\necho done\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    planned = gpu_check._smoke(How(tmp_path, Path("pack")))
    monkeypatch.undo()
    monkeypatch.setenv(gpu_check.VARIABLE, "pack")
    report = {}
    gpu_check.check([python("", name="build"), *planned], report, tmp_path / "check.json", 60)
    found = {name: stage["status"] for name, stage in report["stages"].items()}
    without = "passed" if refused else "skipped"
    assert found["smoke without the pack"] == without
    assert (gpu_check.VARIABLE in os.environ) != refused


def test_all_stages_share_the_time(tmp_path):
    report = {}
    assert not gpu_check.check([python("", name="build")], report, tmp_path / "check.json", 0)
    assert report["stages"]["build"]["status"] == "timed out"


TESTS = """
import os, pytest, signal

def test_good(): pass

def test_bad(): assert 1 == 2, "one is not two"

@pytest.mark.skip(reason="no such device")
def test_skipped(): pass

@pytest.fixture
def broken(): raise OSError("no fixture")

def test_error(broken): pass

def test_interrupted(): os.kill(os.getpid(), signal.SIGINT)

def test_never_run(): pass
"""


def run_in(folder: Path, *options: str) -> dict[str, Any]:
    """What came of the test files in ``folder``, as `make gpu-check` runs them."""
    results = folder / "results"
    command = [sys.executable, str(ROOT / "tests" / "run_files.py"), str(results)]
    command += [f"--tests={folder}", f"--rootdir={folder}", "--workers=2", *options]
    stage = Stage("tests", command, read=lambda _: gpu_check.read_junit(results))
    return stages.run(stage, folder, 60)


def test_results_of_pytest_also_when_one_file_is_cut_short(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_others.py").write_text("def test_good(): pass\ndef test_left_out(): pass\n")
    (tmp_path / "test_none.py").write_text("def test_left_out(): pass\n")
    (tmp_path / "test_lost.py").write_text("import os\ndef test_exit(): os._exit(7)\n")
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    result = run_in(tmp_path, "-k", "not left_out")
    assert result["status"] == "failed"
    assert result["counts"] == {"passed": 2, "failed": 3, "skipped": 1}
    bad = {"::test_broken", "test_some::test_bad", "test_some::test_error"}
    assert set(result["failures"]) == bad
    assert "one is not two" in result["failures"]["test_some::test_bad"]
    assert result["skips"] == {"no such device": 1}
    said = {line.split(":")[0]: line for line in result["output_tail"].splitlines()}
    assert "exit code 2" in said["test_some.py"]
    assert "passed" in said["test_others.py"]
    assert "test_none.py" not in said
    assert "exit code 2" in said["test_broken.py"]
    assert "exit code 7" in said["test_lost.py"]


def test_results_that_were_cut_short_hide_no_others(tmp_path):
    whole = '<testsuites><testsuite><testcase classname="a" name="b"/></testsuite></testsuites>'
    (tmp_path / "00.xml").write_text(whole[:40])
    (tmp_path / "01.xml").write_text(whole)
    result = gpu_check.read_junit(tmp_path)
    assert result["counts"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert "cut short" in result["failures"]["00.xml"]


def test_the_build_finds_what_lies_beside_python(tmp_path):
    build, *_ = gpu_check.plan(How(tmp_path))
    first, *others = build.environment["PATH"].split(os.pathsep)
    assert first == sysconfig.get_path("scripts")
    assert others == os.environ["PATH"].split(os.pathsep)


@pytest.mark.parametrize(("version", "accepted"), [("76.1.0", True), ("77.0.1", False)])
def test_the_build_needs_no_setuptools_that_reads_the_license(version, accepted, tmp_path):
    """An older one refuses pyproject.toml, as any does this one."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nlicense = 1\n")
    code = f"""
import runpy, setuptools, sys
setuptools.__version__ = {version!r}
sys.argv = ["setup.py", "build_ext", "--inplace", "--help"]
runpy.run_path("setup.py")
"""
    result = stages.run(python(code), tmp_path, 60)
    assert (result["status"] == "passed") == accepted
    assert ("usage:" in result["output_tail"]) == accepted


@pytest.mark.parametrize(
    ("expression", "exit_code"), [("good", 0), ("bad", 1), ("absent", run_files.NOTHING)]
)
def test_exit_code_of_all_files(expression, exit_code, tmp_path):
    (tmp_path / "test_a.py").write_text("def test_good(): pass\n")
    (tmp_path / "test_b.py").write_text("def test_bad(): assert False\n")
    assert run_in(tmp_path, "-k", expression)["exit_code"] == exit_code


def test_what_is_done_when_all_files_are_interrupted_counts(tmp_path):
    """As by stages.py when time is up: all processes of the group, here by one of them."""
    mark = repr(str(tmp_path / "mark"))
    head = "import os, pathlib, signal, time\ndef test_good(): pass\n"
    waits = f"def test_slow():\n    pathlib.Path({mark}).touch()\n    time.sleep(60)\n"
    interrupts = (
        f"def test_end():\n    while not os.path.exists({mark}): time.sleep(0.1)\n"
        "    os.killpg(0, signal.SIGINT)\n    time.sleep(60)\n"
    )
    (tmp_path / "test_1.py").write_text(head + waits)
    (tmp_path / "test_2.py").write_text(head + interrupts)
    (tmp_path / "test_3.py").write_text(head)
    result = run_in(tmp_path)
    assert result["exit_code"] == run_files.INTERRUPTED
    assert result["counts"] == {"passed": 2, "failed": 0, "skipped": 0}
    assert "1 of 3 were not started" in result["output_tail"]


def test_parts_of_a_file_hold_each_test_once():
    """The longest are named in run_files.py, with expressions that together leave nothing out."""
    cut = {name: parts for name, parts in run_files.LONGEST.items() if len(parts) > 1}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in cut)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    assert {test.split("::")[0] for test in tests} == {f"tests/{name}" for name in cut}
    met = dict.fromkeys((name, part) for name, parts in cut.items() for part in parts)
    for test in tests:
        name = test.split("::")[0].removeprefix("tests/")
        parts = [part for part in cut[name] if selects(part, test)]
        assert len(parts) == 1, test
        met[name, parts[0]] = test
    assert all(met.values())
    assert all((ROOT / "tests" / name).exists() for name in run_files.LONGEST)


def selects(expression: str, test: str) -> bool:
    """As pytest's -k, of these words."""
    words = {word: word in test for word in re.findall(r"\w+", expression)}
    values = {word: met for word, met in words.items() if not keyword.iskeyword(word)}
    return eval(expression, values)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", {"summary": "0 errors"}),
        ("killed", {"summary": None}),
    ],
)
def test_summary_of_the_sanitizer(output, expected):
    assert gpu_check.read_sanitizer(output) == expected


def test_a_device_without_sanitizer_is_no_failure():
    found = gpu_check.read_sanitizer("========= Error: Device not supported.\n")
    assert found["status"] == "skipped"
