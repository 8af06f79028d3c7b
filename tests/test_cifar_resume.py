"""Runs of examples/cifar100 that are cut off, killed, gone on with and kept."""

import itertools
import signal
import subprocess
import sys
import time

import pytest
import torch

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

from test_cifar import (
    SCRIPTS,
    SMALL,
    as_a_process_of_its_own,
    assert_equal,
    state_of,
    student,
    teacher,
)

import engine

# Fixtures.
__all__ = ["as_a_process_of_its_own", "teacher"]


RESUMED = {
    "fifo": ["--save_steps", "2"],
    "momentum": ["--save_steps", "2", "--memory_type", "momentum", "--similarity", "cosine"],
    "crd": ["--save_steps", "2", "--distill", "crd"],
    "fp16": ["--save_steps", "2", "--amp", "fp16"],
    "all at once": [
        *("--save_steps", "1", "--accumulate", "2", "--amp", "bf16", "--loader", "workers"),
        *("--channels_last", "-a", "1", "--memory_type", "momentum", "--mode", "relax"),
        "--deterministic",
    ],
}


#: Of two epochs' ten steps, those that are left after a stop: in an epoch, at its end, and
#: after a checkpoint of the second.
LEFT = {3: 8, 5: 5, 7: 3}


SHORT = [("fifo", 3), ("crd", 3), ("momentum", 5), ("all at once", 7)]
#: float16 once: a CPU takes ten times as long for it.
ALL = [*itertools.product(sorted(RESUMED.keys() - {"fp16"}), LEFT), ("fp16", 3)]


@pytest.mark.parametrize(
    ("kind", "stop"),
    [pytest.param(*each, marks=[pytest.mark.long] * (each not in SHORT)) for each in ALL],
)
def test_a_run_that_is_cut_off_goes_on_to_the_same_weights(
    kind, stop, teacher, tmp_path, monkeypatch
):
    options = ["--distill", "rrd", "--nce_k", "40", *RESUMED[kind]]
    whole = state_of(student(teacher, tmp_path / "whole", *options))
    real, calls = engine.Trainer._train_batch, []

    def interrupted(self, *arguments):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(1)
        return real(self, *arguments)

    def counted(self, *arguments):
        calls.append(1)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "_train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            student(teacher, tmp_path / "cut", *options)
    torch.rand(5)  # whatever else has drawn in between
    calls.clear()
    monkeypatch.setattr(engine.Trainer, "_train_batch", counted)
    resumed = student(teacher, tmp_path / "cut", *options, "--resume")
    assert len(calls) == LEFT[stop]
    assert_equal(state_of(resumed), whole)
    assert (resumed / "epochs.csv").read_text().count("\n") == 3


@pytest.mark.long
def test_a_killed_process_goes_on_to_the_same_weights(teacher, tmp_path):
    """By SIGKILL, twice: whatever it is doing some milliseconds after its first checkpoint."""
    options = ["--distill", "rrd", "--nce_k", "40", "--save_steps", "1", "--epochs", "4"]
    whole = state_of(student(teacher, tmp_path / "whole", *options))
    command = [sys.executable, str(SCRIPTS / "train_student.py"), "--path_t", str(teacher)]
    command += ["--save_folder", str(tmp_path / "killed"), *SMALL, *options, "--resume"]

    def written() -> list[int]:
        """When the checkpoint was; the temporary file does not count."""
        return [path.stat().st_mtime_ns for path in tmp_path.glob("killed/*/*/resnet8_last.pth")]

    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = written()
        while process.poll() is None and written() == before:
            time.sleep(0.002)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming in epoch" in done.stdout
    (run,) = tmp_path.glob("killed/student_model/*")
    assert_equal(state_of(run), whole)
    assert not list(run.glob(".*"))


KILLED_IN_A_WRITE = """
import io, os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import torch
import train_student

save, written = torch.save, []

def half(state, file):
    buffer = io.BytesIO()
    save(state, buffer)
    content = buffer.getvalue()
    written.append(len(content))
    if len(written) == 4:
        file.write(content[: len(content) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    file.write(content)

torch.save = half
train_student.main(sys.argv[1:])
"""


def test_a_process_that_is_killed_while_it_writes_loses_one_step(teacher, tmp_path):
    options = ["--distill", "rrd", "--nce_k", "40", "--save_steps", "1"]
    whole = state_of(student(teacher, tmp_path / "whole", *options))
    arguments = ["--path_t", str(teacher), "--save_folder", str(tmp_path / "killed"), *SMALL]
    command = [sys.executable, "-c", KILLED_IN_A_WRITE, str(SCRIPTS), *arguments, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = tmp_path.glob("killed/student_model/*")
    assert len(list(run.glob(".*"))) == 1
    assert state_of(run)["batch"] == 3
    student(teacher, tmp_path / "killed", *options, "--resume")
    assert_equal(state_of(run), whole)
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("fails", ["best", "last", "ckpt_epoch_2"])
def test_a_kill_between_two_checkpoints_loses_neither(fails, teacher, tmp_path, monkeypatch):
    real = engine.checkpoint.write_atomically

    def killed(state, path):
        if path.stem.endswith(fails):
            raise KeyboardInterrupt
        real(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(engine.checkpoint, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            student(teacher, tmp_path, "--distill", "kd")
    run = student(teacher, tmp_path, "--distill", "kd", "--resume")
    best, last = (
        torch.load(run / f"resnet8_{name}.pth", weights_only=True) for name in ("best", "last")
    )
    assert best["accuracy"] == last["best_acc"]
    kept = torch.load(run / "ckpt_epoch_2.pth", weights_only=True)["model"]
    assert_equal(kept, last["model"])


def test_a_run_goes_on_with_its_own_settings_only(teacher, tmp_path):
    run = student(teacher, tmp_path, "--distill", "kd")
    before = (run / "settings.json").read_text()
    with pytest.raises(ValueError, match=r"kd_T was 4.0 and is 9.0; seed was 0 and is 7"):
        student(teacher, tmp_path, "--distill", "kd", "--resume", "--kd_T", "9", "--seed", "7")
    assert (run / "settings.json").read_text() == before
    student(teacher, tmp_path, "--distill", "kd", "--resume", "--epochs", "3", "--print_freq", "9")
    assert (run / "epochs.csv").read_text().count("\n") == 4
    with pytest.raises(ValueError, match="has 3 epochs, more than --epochs 2"):
        student(teacher, tmp_path, "--distill", "kd", "--resume")


def test_a_run_is_not_overwritten(teacher, tmp_path):
    run = student(teacher, tmp_path, "--distill", "kd")
    before = (run / "resnet8_last.pth").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        student(teacher, tmp_path, "--distill", "kd")
    assert (run / "resnet8_last.pth").read_bytes() == before


def test_a_run_goes_on_with_states_of_wrapped_modules(teacher, tmp_path):
    """Such as a training script of one's own saves, which compiles or wraps what it trains."""
    options = ["--distill", "rrd", "--nce_k", "64"]
    whole = state_of(student(teacher, tmp_path / "whole", *options))
    run = student(teacher, tmp_path / "cut", *options, "--epochs", "1")
    saved = state_of(run)
    for key, wrapping in (("model", "module._orig_mod."), ("criterion", "_orig_mod.")):
        saved[key] = {wrapping + name: value for name, value in saved[key].items()}
    torch.save(saved, run / "resnet8_last.pth")
    assert_equal(state_of(student(teacher, tmp_path / "cut", *options, "--resume")), whole)
