"""examples/cifar100/train_student.py in two processes, on digits, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

from ranks import on_ranks
from test_cifar import SCRIPTS, SMALL, as_a_process_of_its_own, assert_equal, state_of, teacher

import engine
import processes
import train_student
import train_teacher
from images.data import load
from images.loaders import DeviceLoader, WorkerLoader

# Fixtures.
__all__ = ["as_a_process_of_its_own", "teacher"]


def test_under_torchrun(teacher, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPTS / "train_student.py")]
    command += ["--path_t", str(teacher), "--save_folder", str(tmp_path), *SMALL]
    done = subprocess.run(
        [*command, "--distill", "rrd", "--nce_k", "64", "--epochs", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best test accuracy") == 1
    (run,) = tmp_path.glob("student_model/*")
    assert (run / "epochs.csv").read_text().count("\n") == 2
    assert json.loads((run / "settings.json").read_text())["processes"] == 2


def test_several_processes_share_no_device(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"--device cuda:0 would be .* give --device cuda$"):
        processes.start(torch.device("cuda:0"))


KINDS = {
    "fifo": ["--distill", "rrd", "--nce_k", "64"],
    "momentum": [
        *("--distill", "rrd", "--memory_type", "momentum", "--nce_k", "32"),
        *("--similarity", "cosine", "--save_steps", "2", "-a", "1"),
    ],
    "crd": ["--distill", "crd", "--nce_k", "32", "--save_steps", "2"],
    "vid": ["--distill", "vid", "--save_steps", "2"],
}


def whole_and_cut(rank, teacher, folder):
    """Two epochs at once; and one epoch, and another after it. Rank 1 is as on another machine."""
    torch.use_deterministic_algorithms(False)  # which the script sets for itself
    for kind, options in KINDS.items():
        arguments = ["--path_t", teacher, *SMALL, *options]
        arguments += ["--save_folder", f"{folder}/elsewhere" if rank else f"{folder}/{kind}"]
        train_student.main([*arguments, "--trial", "whole"])
        train_student.main([*arguments, "--trial", "cut", "--epochs", "1"])
        torch.rand(5)  # whatever else has drawn in between
        train_student.main([*arguments, "--trial", "cut", "--resume"])
        with pytest.raises(FileExistsError, match=f"{folder}/{kind}.* holds a run already"):
            train_student.main([*arguments, "--trial", "cut"])
        for changed in (["--epochs", "1"], ["--weight_decay", "7"]):
            with pytest.raises(ValueError, match=r"has 2 epochs|weight_decay was"):
                train_student.main([*arguments, "--trial", "cut", "--resume", *changed])
    assert not Path(folder, "elsewhere").exists()


@pytest.mark.long
def test_a_run_that_stops_goes_on_to_the_same_weights(teacher, tmp_path):
    on_ranks(2, whole_and_cut, str(teacher), str(tmp_path))
    for kind in KINDS:
        whole, cut = (
            next(tmp_path.glob(f"{kind}/student_model/*_{name}")) for name in ("whole", "cut")
        )
        assert_equal(state_of(cut), state_of(whole))
        assert len(state_of(cut)["random"]) == 2
        assert (cut / "epochs.csv").read_text().count("\n") == 3
    # Another number of processes is another training.
    folder = ["--path_t", str(teacher), "--save_folder", str(tmp_path / "fifo")]
    with pytest.raises(ValueError, match="processes was 2 and is None"):
        train_student.main([*folder, *SMALL, *KINDS["fifo"], "--trial", "cut", "--resume"])


class Linear(torch.nn.Module):
    """Without batch norm, which would see the smaller batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(3 * 32 * 32, 10)

    def forward(self, images):
        return self.linear(images.flatten(1))


def train_linear(rank, folder, accumulate):
    """Two epochs of 76 images in batches of 16, the last of 12."""
    torch.use_deterministic_algorithms(False)
    options = train_teacher.parse_arguments([*SMALL, "--accumulate", str(accumulate)])
    options.images = 76
    device = engine.prepare(options)
    _, loaders = engine.make_data(options, device)
    model = Linear()
    module = processes.together(model)

    def step(images, labels, idx):
        logits = module(images)
        return torch.nn.functional.cross_entropy(logits, labels), {}, logits

    run = engine.Run(Path(folder), "linear", resume=False)
    trainer = engine.Trainer(options, run, model, {"model": model}, step, loaders, device, 0.1)
    trainer.fit()
    return model.linear.weight.detach()


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.long), 2])
def test_two_processes_train_as_one(accumulate, tmp_path):
    alone = train_linear(0, str(tmp_path / "alone"), accumulate)
    both = on_ranks(2, train_linear, str(tmp_path / "both"), accumulate)
    for weight in both:
        torch.testing.assert_close(weight, alone)
    rows = [(tmp_path / name / "epochs.csv").read_text().splitlines() for name in ("alone", "both")]
    columns = [[row.rsplit(",", 1)[0].split(",") for row in each[1:]] for each in rows]
    for mine, wanted in zip(*columns, strict=True):  # all but the images in a second
        assert [float(v) for v in mine] == pytest.approx([float(v) for v in wanted], rel=1e-4)


@pytest.mark.parametrize("loader", [DeviceLoader, WorkerLoader])
def test_parts_of_a_batch_make_the_batch(loader):
    """But for one of 77 images, which would leave a process with one more."""
    images = load("digits").thinned(77)
    options = {} if loader is DeviceLoader else {"workers": 0}
    parts = [loader(images, 16, part=(rank, 2), **options) for rank in range(2)]
    whole = loader(images, 16, **options)
    assert [len(part) for part in parts] == [5, 5]
    assert [part.samples for part in parts] == [76, 76]
    for first, second, batch in zip(*(each.epoch(3, 1) for each in (*parts, whole)), strict=True):
        for mine, theirs, all_of_it in zip(first, second, batch, strict=True):
            assert len(mine) == len(theirs)
            together = torch.cat((mine, theirs))
            assert torch.equal(together, all_of_it[: len(together)])
    assert list(parts[0].epoch(3, 5)) == []


def test_what_does_not_go_together(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="batch_size=15 must be a multiple of the 2 processes"):
        DeviceLoader(load("digits"), 15, part=(0, 2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="only train_student"):
        train_teacher.main(["--save_folder", str(tmp_path), *SMALL])
    assert not dist.is_initialized()
