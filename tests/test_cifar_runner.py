"""Trainings side by side: killed, failing, and never two in one folder. No training is run here,
but scripts that write the same files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rich")

from comparing import runner
from comparing.runner import Task, run_all

SCRIPTS = Path(runner.__file__).parents[1]

#: Writes a row of epochs.csv for each epoch; goes on where it was. What it does, and which process
#: it is, it notes in "diary". In the last epoch it waits for the file "go", if it is told to.
TRAIN = f"""
import csv, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(SCRIPTS)!r})
import lock
folder, epochs, go = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if epochs == 0:
    sys.exit("error: no epochs\\n")
if go.name == "held" and not go.exists():
    go.touch()
    sys.exit(lock.HELD)
lock.hold(folder)
path = folder / "epochs.csv"
rows = path.read_text().splitlines() if path.exists() else ["epoch"]
with (folder / "diary").open("a", buffering=1) as diary:
    for epoch in range(len(rows), epochs + 1):
        print("begins", os.getpid(), epoch, file=diary)
        while epoch == epochs and not go.exists():
            time.sleep(0.005)
        rows.append(str(epoch))
        (folder / "new").write_text("\\n".join(rows) + "\\n")
        (folder / "new").replace(path)
        print("ends", os.getpid(), epoch, file=diary)
(folder / "last.pth").write_text("weights")
print("trained with", os.environ["OMP_NUM_THREADS"], "threads")
"""

PARENT = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(SCRIPTS)!r})
from comparing import runner
runner.SCRIPTS, runner.PAUSE = Path(sys.argv[1]), 0.01
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_cifar_runner import tasks_in
runner.run_all(tasks_in(runner.SCRIPTS, 3, 4, "go"), 2, 1, print)
"""


def tasks_in(folder, count, epochs, go="train.py"):
    return [
        Task(
            name=f"run {at}",
            script="train.py",
            arguments=(str(folder / str(at)), str(epochs), str(folder / go)),
            folder=folder / str(at),
            checkpoint=folder / str(at) / "last.pth",
            epochs=epochs,
        )
        for at in range(count)
    ]


def what_of(lines):
    """Without the processes."""
    return [(word, epoch) for word, _, epoch in lines]


def whole(epochs):
    return [(word, str(epoch)) for epoch in range(1, epochs + 1) for word in ("begins", "ends")]


def diary(task):
    path = task.folder / "diary"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(autouse=True)
def scripts(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(runner, "SCRIPTS", tmp_path)
    monkeypatch.setattr(runner, "PAUSE", 0.01)


def test_all_are_run_and_none_again(tmp_path, capsys, monkeypatch):
    tasks = tasks_in(tmp_path, 3, 2)
    ended = []
    assert run_all(tasks, 2, 5, ended.append) == []
    assert sorted(ended) == tasks
    for task in tasks:
        assert what_of(diary(task)) == whole(2)
        assert task.log.read_text() == "trained with 5 threads\n"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0 of 3 runs; time left: not known yet; training run 0 and run 1"
    assert lines[-1].startswith("3 of 3 runs; time left: 0:00:00")

    started = []
    start = runner._start
    monkeypatch.setattr(runner, "_start", lambda *args: started.append(args[0]) or start(*args))
    run_all(tasks, 2, 1, ended.append)
    assert started == []
    # What a finished run was made from, or has left, is another.
    tasks[0].checkpoint.write_text("other weights")
    tasks[1] = tasks[1]._replace(arguments=(*tasks[1].arguments, "more"))
    tasks[2] = tasks[2]._replace(inputs=(tmp_path / "train.py",))
    run_all(tasks, 1, 1, ended.append)
    assert started == tasks


def test_a_failure_is_named_and_the_others_go_on(tmp_path, capsys):
    tasks = tasks_in(tmp_path, 3, 1)
    broken = tasks[0]._replace(arguments=(tasks[0].arguments[0], "0", "go"))
    ended = []
    (failure,) = run_all([broken, *tasks[1:]], 1, 1, ended.append)
    assert ended == tasks[1:]
    log = tmp_path / "0" / "log.txt"
    assert str(failure) == f"run 0: error: no epochs (exit status 1, log {log})"
    assert f"failed: {failure}\n" in capsys.readouterr().out
    assert run_all(tasks, 1, 1, ended.append) == []
    assert ended[2:] == tasks[:1]


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_after_kill_9_what_still_trains_is_waited_for(tmp_path):
    """Of two runs that a killed parent leaves, one is killed too. The other goes on, and the next
    call of the same waits for it: every epoch is trained once, but for the one that was cut off."""
    tasks = tasks_in(tmp_path, 3, 4, "go")
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: all(what_of(diary(task))[-1:] == [("begins", "4")] for task in tasks[:2]))
    parent.kill()
    parent.wait()
    victim = int(diary(tasks[0])[0][1])
    os.kill(victim, signal.SIGKILL)
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert "training run 0; 1 trained by another process" in parent.stdout.readline()
    (tmp_path / "go").touch()
    parent.communicate(timeout=60)
    assert parent.returncode == 0

    for task in tasks[1:]:
        assert what_of(diary(task)) == whole(4)
        assert len({process for _, process, _ in diary(task)}) == 1  # of the second, the one left
    *before, cut, again, end = diary(tasks[0])
    assert what_of([*before, again, end]) == whole(4)
    assert {process for _, process, _ in [*before, cut]} == {str(victim)}
    assert all(runner.is_finished(task) for task in tasks)


def test_a_run_that_found_its_folder_held_is_tried_again(tmp_path):
    (task,) = tasks_in(tmp_path, 1, 2, "held")
    ended = []
    assert run_all([task], 1, 1, ended.append) == []
    assert ended == [task]
    assert what_of(diary(task)) == whole(2)


def test_what_a_caller_refuses_is_a_failure(tmp_path):
    def refuse(task):
        raise ValueError("it has no figures")

    tasks = tasks_in(tmp_path, 1, 1)
    (failure,) = run_all(tasks, 1, 1, refuse)
    assert str(failure).startswith("run 0: it has no figures")
    assert not runner.is_finished(tasks[0])


def test_an_end_on_request_ends_the_trainings(tmp_path):
    tasks = tasks_in(tmp_path, 3, 4, "go")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.DEVNULL
    )
    until(lambda: diary(tasks[0]) and diary(tasks[1]))
    parent.terminate()
    assert parent.wait(20) == 128 + signal.SIGTERM
    for task in tasks[:2]:
        with pytest.raises(ProcessLookupError):
            os.kill(int(diary(task)[0][1]), 0)
    assert diary(tasks[2]) == []


def test_shares_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert runner.shares(None, "cpu") == (8, 1)
    assert runner.shares(None, "cuda") == (1, 8)
    assert runner.shares(3, "cpu") == (3, 2)
    assert runner.shares(20, "cpu") == (20, 1)


def test_what_a_kill_cut_off_is_no_json(tmp_path):
    path = tmp_path / "x.json"
    assert runner.read_json(path) is None
    path.write_text('{"agree')
    assert runner.read_json(path) is None
