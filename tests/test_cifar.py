"""The scripts of examples/cifar100, on digits, in settings so small that figures mean nothing."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

for package in ("PIL", "matplotlib", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import compare
import engine
import loader_speed
import paper
import plot
import speed
import train_student
import train_teacher
import transfer_student
from models import make_model

SCRIPTS = Path(__file__).resolve().parents[1] / "examples" / "cifar100"
SMALL = ["--images", "80", "--batch_size", "16", "--epochs", "2", "--quiet", "--device", "cpu"]
SMALL += ["--learning_rate", "0.01", "--num_workers", "0", "--save_freq", "2"]


@pytest.fixture(autouse=True)
def as_a_process_of_its_own():
    """The scripts set the deterministic mode for themselves."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher's last checkpoint."""
    folder = tmp_path_factory.mktemp("teacher")
    train_teacher.main(["--model", "resnet14", "--save_folder", str(folder), *SMALL])
    (path,) = folder.glob("models/resnet14_digits_trial_0/resnet14_last.pth")
    return path


def student(teacher, folder, *options):
    """Trains one; its folder."""
    path = [] if "none" in options else ["--path_t", str(teacher)]
    train_student.main([*path, "--save_folder", str(folder), *SMALL, *options])
    (run,) = folder.glob("student_model/*")
    return run


KINDS = {
    "kd": ["--distill", "kd"],
    "rrd": ["--distill", "rrd", "--nce_k", "64"],
    "rrd 2024 and kd": ["--distill", "rrd", "-a", "0.5", "--nce_k", "64", "--protocol", "2024"],
    "momentum": ["--distill", "rrd", "--memory_type", "momentum", "--nce_k", "32"],
    "momentum, relaxed": [
        *("--distill", "rrd", "--memory_type", "momentum", "--nce_k", "32"),
        *("--mode", "relax", "--similarity", "cosine"),
    ],
    "crd, relaxed and kd": ["--distill", "crd", "-a", "1", "--nce_k", "32", "--mode", "relax"],
    "none": ["--distill", "none"],
    "workers": ["--distill", "kd", "--loader", "workers"],
    "bf16": ["--distill", "rrd", "--nce_k", "64", "--amp", "bf16", "--channels_last"],
    "accumulate": ["--distill", "rrd", "--nce_k", "64", "--accumulate", "2"],
    "compile": ["--distill", "kd", "--compile", "--drop_last"],
}


@pytest.mark.filterwarnings("error:opt")
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_students(options, teacher, tmp_path):
    run = student(teacher, tmp_path, *options)
    settings = json.loads((run / "settings.json").read_text())
    assert settings["distill"] == options[1]
    rows = (run / "epochs.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,train_loss")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    events = EventAccumulator(str(run)).Reload()
    accuracies = [event.value for event in events.Scalars("test_acc")]
    with (run / "epochs.csv").open(newline="") as file:
        written = [float(row["test_acc"]) for row in csv.DictReader(file)]
    # TensorBoard's numbers are float32, those of the file have six digits.
    assert accuracies == pytest.approx(written, rel=1e-5)
    for name in ("best", "last"):
        saved = torch.load(run / f"resnet8_{name}.pth", weights_only=True)
        assert saved.keys() >= {"epoch", "model", "best_acc", "optimizer"}
    assert (saved["epoch"], saved["next_epoch"]) == (2, 3)
    assert torch.load(run / "ckpt_epoch_2.pth", weights_only=True).keys() == {
        *("epoch", "accuracy", "model")
    }


def state_of(run):
    return torch.load(run / "resnet8_last.pth", weights_only=True)


def test_crd_trains_both_projections_and_saves_the_published_state(teacher, tmp_path):
    """Under the prefix of the whole criterion."""
    run = student(teacher, tmp_path, "--distill", "crd", "--nce_k", "32")
    assert run.name.startswith("CRD_digits_S_resnet8_T_resnet14_r_1_a_0_b_0.8_trial_1")
    saved = state_of(run)
    rows = {"contrast.params": (5,)} | {f"contrast.memory_v{view}": (80, 128) for view in (1, 2)}
    widths = {"embed_s": 64, "embed_t": 64}
    projections = {f"{name}.linear.weight": (128, width) for name, width in widths.items()}
    projections |= {f"{name}.linear.bias": (128,) for name in widths}
    found = {name: tuple(value.shape) for name, value in saved["criterion"].items()}
    assert found == {f"crd.{name}": shape for name, shape in (rows | projections).items()}
    size, _, *normalizers, _ = saved["criterion"]["crd.contrast.params"].tolist()
    assert size == 32
    assert min(normalizers) > 0
    # SGD keeps a momentum of what has had a gradient; the criterion's parameters come last.
    optimizer = saved["optimizer"]
    (parameters,) = (group["params"] for group in optimizer["param_groups"])
    assert all(optimizer["state"][each]["momentum_buffer"].any() for each in parameters[-4:])
    with (run / "epochs.csv").open(newline="") as file:
        assert all(float(row["train_crd"]) > 0 for row in csv.DictReader(file))


def assert_equal(a, b, name="state"):
    """Bit for bit, whatever is nested in what, but for the command line's own words."""
    if name == "state.settings":
        return
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, (list, tuple)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{name}.{i}")
    else:
        assert a == b, name


@pytest.mark.parametrize("kind", ["rrd", "momentum, relaxed"])
@pytest.mark.parametrize("loader", ["device", "workers"])
def test_another_default_device_changes_nothing(kind, loader, teacher, tmp_path):
    """One of which no tensor has values, with all that runs on the CPU."""
    options = [*KINDS[kind], "--loader", loader, "--num_workers", "0"]
    wanted = state_of(student(teacher, tmp_path / "plain", *options))
    torch.set_default_device("meta")
    try:
        found = state_of(student(teacher, tmp_path / "meta", *options))
        best = tmp_path / "meta/student_model"
        (best,) = best.glob("*/resnet8_best.pth")
        transfer_student.main(["--path_s", str(best), "--save_folder", str(tmp_path), *SMALL])
        images = loader_speed.random_set(10)
    finally:
        torch.set_default_device(None)
    assert_equal(found, wanted)
    assert images.images.device.type == images.labels.device.type == "cpu"


def test_transfer_and_pictures(teacher, tmp_path, capsys):
    run = student(teacher, tmp_path, "--distill", "kd")
    checkpoint = run / "resnet8_last.pth"
    transfer_student.main(["--path_s", str(checkpoint), "--save_folder", str(tmp_path), *SMALL])
    assert "linear probe" in capsys.readouterr().out
    (probe,) = tmp_path.glob("transfer/*/probe_last.pth")
    state = torch.load(probe, weights_only=True)["model"]
    frozen = torch.load(checkpoint, weights_only=True)["model"]
    assert_equal({key: state[f"network.{key}"] for key in frozen}, frozen)

    plot.main(["curves", str(run), str(run), "--output", str(tmp_path / "curves.png")])
    for name in ("correlation", "tsne"):
        arguments = ["--path_t", str(teacher), "--path_s", str(checkpoint), str(checkpoint)]
        plot.main([name, *arguments, "--images", "60", "--output", str(tmp_path / f"{name}.png")])
    for name in ("curves", "correlation", "tsne"):
        assert min(Image.open(tmp_path / f"{name}.png").size) > 300

    logits = torch.randn(50, 10, dtype=torch.float64)
    # A student with the same relations on another scale; and one whose third class is the first.
    same = plot.correlation_difference(logits.numpy(), 3 * logits.numpy() + 1)
    assert abs(same).max() < 1e-14  # of correlations up to 1
    copied = logits.clone()
    copied[:, 2] = copied[:, 0]
    difference = plot.correlation_difference(logits.numpy(), copied.numpy())
    wanted = torch.corrcoef(logits.T)[0, 2].item() - 1
    assert difference[0, 2] == pytest.approx(wanted, rel=1e-12)


def test_runs_are_labelled_by_method(teacher, tmp_path):
    published = student(teacher, tmp_path / "a", "--distill", "none", "--seed", "3")
    assert plot.label_of(published) == "resnet8, student, seed 3"
    other = student(teacher, tmp_path / "b", "--distill", "none", "-r", "2")
    assert plot.label_of(other) == other.name
    assert plot.label_of(teacher.parent) == teacher.parent.name


def test_curves_leave_out_runs_without_an_epoch(tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    plot.main(["curves", str(tmp_path / "begun"), "--output", str(tmp_path / "curves.png")])
    assert "begun has no finished epoch" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(teacher, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step .*Lower --learning_rate"):
        student(teacher, tmp_path, "--distill", "kd", "--learning_rate", "1e30")
    assert not list(tmp_path.glob("**/*.pth"))


def test_weights_that_are_not_finite_are_not_saved(teacher, tmp_path, monkeypatch):
    """By the epoch's last step, whose own loss was still right."""
    real = engine.Trainer._train_batch

    def spoilt(self, *arguments):
        result = real(self, *arguments)
        if (self.epoch, self.batch) == (2, 5):
            next(self.model.parameters()).data.fill_(float("nan"))
        return result

    monkeypatch.setattr(engine.Trainer, "_train_batch", spoilt)
    with pytest.raises(FloatingPointError, match="not finite in epoch 2"):
        student(teacher, tmp_path, "--distill", "kd")
    for path in tmp_path.glob("**/resnet8_*.pth"):
        saved = torch.load(path, weights_only=True)
        assert saved["epoch"] == 1
        assert all(value.isfinite().all() for value in saved["model"].values())


def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path):
    """Of a network without batch norm, which would see the smaller batches."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3 * 32 * 32, 10)

        def forward(self, images):
            return self.linear(images.flatten(1))

    found = []
    for batch_size, accumulate in ((32, 1), (8, 4)):
        options = train_teacher.parse_arguments(
            [*SMALL, "--batch_size", str(batch_size), "--accumulate", str(accumulate)]
        )
        options.images = 76  # the last batch is smaller in both, and so is the last group
        device = engine.prepare(options)
        _, loaders = engine.make_data(options, device)
        model = Linear()

        def step(images, labels, idx, model=model):
            logits = model(images)
            return torch.nn.functional.cross_entropy(logits, labels), {}, logits

        run = engine.Run(tmp_path / str(accumulate), "linear", resume=False)
        trainer = engine.Trainer(options, run, model, {"model": model}, step, loaders, device, 0.1)
        trainer.fit()
        found.append(model.linear.weight.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--distill", "rrd"], "needs --path_t"),
        (["--distill", "none", "-b", "1"], "takes no -a and no -b; got -a 0 and -b 1"),
        (["--distill", "kd", "-b", "1", "--path_t", "x"], "takes no -b; got -b 1"),
        (["--epochs", "0"], "must be at least 1; got 0"),
        (["--lr_decay_epochs", "a,b"], "separated by commas, such as 150,180,210; got 'a,b'"),
        (["--model_s", "resnet9"], "invalid choice"),
        (
            ["--distill", "rrd", "--path_t", "x", "--nce_k", "63"],
            "at least --batch_size, 64; got 63",
        ),
        (
            ["--distill", "rrd", "--path_t", "x", "--memory_type=momentum", "--protocol=2024"],
            "no momentum memory",
        ),
    ],
    ids=str,
)
def test_command_lines_that_are_refused(arguments, text, capsys):
    with pytest.raises(SystemExit):
        train_student.parse_arguments(arguments)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *((script, []) for script in (train_teacher, train_student, transfer_student, compare)),
        *((script, []) for script in (paper, speed, loader_speed, plot)),
        *((plot, [picture]) for picture in ("curves", "correlation", "tsne")),
    ],
)
def test_help(script, arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
    with pytest.raises(SystemExit, match="0"):
        script.main([*arguments, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_a_teacher_in_a_folder_of_any_name_needs_its_architecture(teacher, tmp_path):
    """The error names the option, with which the run is the same as by the folder's name."""
    own = tmp_path / "my teachers" / "best.pth"
    own.parent.mkdir()
    shutil.copy(teacher, own)
    with pytest.raises(ValueError, match=r"'my teachers' does not begin .* --model_t ARCH"):
        student(own, tmp_path / "unnamed", "--distill", "kd")
    model = json.loads((teacher.parent / "settings.json").read_text())["model"]
    found = student(own, tmp_path / "own", "--distill", "kd", "--model_t", model)
    wanted = student(teacher, tmp_path / "published", "--distill", "kd")
    assert_equal(state_of(found), state_of(wanted))
    assert found.name == wanted.name


def test_pictures_of_networks_of_a_part_of_the_classes(tmp_path):
    path = tmp_path / "resnet8_two" / "resnet8_last.pth"
    path.parent.mkdir()
    torch.save({"model": make_model("resnet8", 2).state_dict()}, path)
    arguments = ["correlation", "--path_t", str(path), "--path_s", str(path), "--images", "20"]
    arguments += ["--output", str(tmp_path / "correlation.png")]
    with pytest.raises(ValueError, match=r"number of classes \(--dataset, --classes\)"):
        plot.main(arguments)
    plot.main([*arguments, "--classes", "1,8"])
    assert min(Image.open(tmp_path / "correlation.png").size) > 300


@pytest.mark.parametrize("distill", ["rrd", "crd"])
def test_a_loss_of_weight_zero_is_left_out(distill, teacher, tmp_path):
    run = student(teacher, tmp_path, "--distill", distill, "-b", "0", "-a", "1", "--epochs", "1")
    (row,) = csv.DictReader((run / "epochs.csv").open())
    assert float(row["train_kd"]) > 0
    assert f"train_{distill}" not in row
    assert state_of(run)["criterion"] == {}


def test_a_learning_rate_of_projections_needs_projections(teacher, tmp_path):
    with pytest.raises(ValueError, match="trains nothing beside the student"):
        student(teacher, tmp_path, "--distill", "kd", "--projection_lr", "0.1")
    assert not any(tmp_path.iterdir())
    still = ["--distill", "rrd", "--nce_k", "80", "--projection_lr", "0"]
    states = [
        state_of(student(teacher, tmp_path / epochs, *still, "--epochs", epochs))
        for epochs in ("1", "2")
    ]
    projections = [state["criterion"]["rrd.memory.embed_s.weight"] for state in states]
    assert torch.equal(*projections)
    assert not torch.equal(*(state["model"]["fc.weight"] for state in states))


def test_speed(tmp_path, capsys):
    record = tmp_path / "speed.json"
    small = ["--model_t", "resnet14", "--model_s", "resnet8", "--batch_size", "4"]
    speed.main(
        [*small, "--nce_k", "64", "--seconds", "0", "--device", "cpu", "--output", str(record)]
    )
    rows = json.loads(record.read_text())["rows"]
    assert [row["step"] for row in rows] == [speed.ALONE, speed.EAGER, speed.FUSED]
    assert all(row["images_per_second"] > 0 for row in rows)
    assert "loss share" in capsys.readouterr().out


def test_loader_speed(tmp_path, capsys):
    record = tmp_path / "loaders.json"
    small = ["--images", "40", "--batch_size", "16", "--workers", "0", "1", "--seconds", "0"]
    loader_speed.main([*small, "--device", "cpu", "--output", str(record)])
    rows = json.loads(record.read_text())["rows"]
    assert [row["loader"] for row in rows] == ["device", "PIL in this process", "PIL, 1 workers"]
    for row in rows:  # three batches, the last of eight
        assert row["images_per_second"] == pytest.approx(40 / 3 / row["seconds"]["median"])
    assert "images/s" in capsys.readouterr().out


def test_speed_refuses_losses_that_differ(monkeypatch):
    def wrong(self, f_s, f_t):
        return 1.01 * torch.ones(()) * f_s.sum()

    monkeypatch.setattr(speed.PublishedRRD, "forward", wrong)
    options = speed.parse_arguments(["--model_t", "resnet8", "--batch_size", "4", "--nce_k", "64"])
    with pytest.raises(RuntimeError, match="differ"):
        speed.measure(options)
