"""Comparisons, studies and compared probes of examples/cifar100, on digits and tiny."""

import csv
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch

for package in ("PIL", "matplotlib", "rich", "scipy", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

from PIL import Image
from test_cifar import SCRIPTS, as_a_process_of_its_own

import compare
import engine
import study
import train_student
import transfer_compare
import transfer_student
from comparing import agreement, runner
from comparing.paired import paired_difference, with_interval
from comparing.report import COMPARISON, markdown, summary
from comparing.study_report import STUDY
from images.data import load
from images.loaders import EvaluationLoader
from models import make_model
from teacher import load_teacher

# Fixtures.
__all__ = ["as_a_process_of_its_own"]

TINY = ["--images", "16", "--batch_size", "8", "--epochs", "2", "--nce_k", "16"]
TINY += ["--learning_rate", "0.01", "--device", "cpu"]
SCRIPT = {"train_student.py": train_student, "transfer_student.py": transfer_student}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The checkpoint of one that has learnt nothing."""
    path = tmp_path_factory.mktemp("teachers") / "resnet8_random" / "last.pth"
    path.parent.mkdir()
    torch.manual_seed(1)
    torch.save({"model": make_model("resnet8", 10).state_dict()}, path)
    return path


class Ended:
    """What is left of a process."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


@pytest.fixture
def started(monkeypatch):
    """The tasks that are started: in this process, which has imported everything."""
    tasks = []

    def start(task, threads):
        tasks.append(task)
        task.folder.mkdir(parents=True, exist_ok=True)
        try:
            SCRIPT[task.script].main(list(task.arguments))
        except ValueError as error:
            task.log.write_text(f"error: {error}\n")
            return Ended(1)
        return Ended(0)

    monkeypatch.setattr(runner, "_start", start)
    monkeypatch.setattr(runner, "PAUSE", 0.0)
    return tasks


def arguments_of(teacher, folder, *own):
    output = ["--output", str(folder / "X.json")]
    return ["--path_t", str(teacher), "--save_folder", str(folder), *output, *TINY, *own]


def rows_of(run):
    with (run / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_comparison_of_two_methods(teacher, tmp_path, started, capsys, monkeypatch):
    arguments = arguments_of(teacher, tmp_path, "--seeds", "2", "--methods")
    arguments += ["student", "RRD+KD 2024"]
    compare.main(arguments)
    assert [task.name for task in started] == [
        f"{name}, seed {seed}" for name in ("student", "RRD+KD 2024") for seed in (0, 1)
    ]
    record = json.loads((tmp_path / "X.json").read_text())
    folders = {
        "student": "NONE_digits_S_resnet8_T_None_r_1_a_0_b_0_trial_student_",
        "RRD+KD 2024": "RRD_digits_S_resnet8_T_resnet8_r_1_a_1_b_1_trial_RRD+KD_2024_",
    }
    test = load("digits", train=False).thinned(16)
    (batch,) = EvaluationLoader(test, 16)
    with torch.no_grad():
        taught = load_teacher(teacher, 10, "resnet8")(batch.images).argmax(1)
        for (name, folder), seed in itertools.product(folders.items(), (0, 1)):
            run = tmp_path / "student_model" / f"{folder}{seed}"
            rows = rows_of(run)
            assert record["accuracy"][name][seed] == float(rows[-1]["test_acc"])
            seconds = statistics.median(16 / float(row["images_per_second"]) for row in rows)
            assert record["seconds_per_epoch"][name][seed] == pytest.approx(seconds, rel=1e-12)
            student = load_teacher(run / "resnet8_last.pth", 10, "resnet8")
            same = (student(batch.images).argmax(1) == taught).sum().item()
            # Sixteenths are exact in float64.
            assert record["agreement"][name][seed] == 100 * same / 16
    accuracy = 100 * (taught == batch.labels).sum().item() / 16
    assert record["teacher"]["architecture"] == "resnet8"
    assert record["teacher"]["accuracy"] == accuracy
    assert record["settings"]["RRD+KD 2024"]["alpha"] == 1
    assert "path_t" not in record["settings"]["RRD+KD 2024"]
    assert record["threads_per_run"] >= 1
    assert record["summary"] == summary(record)
    table = (tmp_path / "X.md").read_text()
    assert table == markdown(record, "X.png")
    assert f"teacher resnet8 of {accuracy:.2f} %, digits: 16 training images of 10 classes" in table
    assert "2 epochs, batches of 8." in table
    assert "on 16 test images" in table
    assert min(Image.open(tmp_path / "X.png").size) > 300
    assert markdown(record, None) in capsys.readouterr().out

    # The same again trains nothing and computes no predictions; nor does the table by itself.
    started.clear()
    monkeypatch.setattr(agreement.Agreement, "_predictions", lambda *_: pytest.fail("again"))
    compare.main(arguments)
    assert started == []
    assert COMPARISON.read(tmp_path / "X.json")["agreement"] == record["agreement"]
    (tmp_path / "X.md").unlink()
    (tmp_path / "X.png").unlink()
    capsys.readouterr()
    compare.main(["--table", str(tmp_path / "X.json")])
    assert capsys.readouterr().out.strip() == markdown(record, None).strip()
    assert (tmp_path / "X.md").read_text() == table
    assert (tmp_path / "X.png").exists()


def test_runs_of_one_process_are_taken_over(teacher, tmp_path, started, monkeypatch):
    """Those of the comparison as it was before: one call of train_student.main after the other."""
    own = ["--distill", "kd", "-r", "0.1", "-a", "0.9", "--path_t", str(teacher)]
    own += ["--seed", "0", "--trial", "KD_0", "--save_folder", str(tmp_path)]
    run = train_student.main([*TINY, *own, "--resume", "--quiet"])
    monkeypatch.setattr(engine.Trainer, "_train_epoch", lambda self: pytest.fail("trained again"))
    compare.main(arguments_of(teacher, tmp_path, "--seeds", "1", "--methods", "KD"))
    (task,) = started  # which finds nothing to do
    assert task.folder == run
    record = json.loads((tmp_path / "X.json").read_text())
    assert record["accuracy"] == {"KD": [float(rows_of(run)[-1]["test_acc"])]}
    table = (tmp_path / "X.md").read_text()
    assert "− student" not in table
    assert "±" not in table.replace("mean ± standard deviation", "")


def test_what_failed_is_missing_in_the_table(teacher, tmp_path, started):
    arguments = arguments_of(teacher, tmp_path, "--seeds", "2", "--methods", "student")
    # A run with other settings is in the place of seed 0.
    other = ["--distill", "none", "--trial", "student_0", "--save_folder", str(tmp_path)]
    train_student.main([*TINY, *other, "--quiet", "--momentum", "0.8"])
    with pytest.raises(SystemExit) as ended:
        compare.main(arguments)
    assert "1 runs failed" in ended.value.code
    assert "student, seed 0: error: --resume needs the settings" in ended.value.code
    record = json.loads((tmp_path / "X.json").read_text())
    assert record["accuracy"]["student"][0] is None
    table = (tmp_path / "X.md").read_text()
    assert "- **Missing**, not finished or failed: student, seed 0.\n" in table
    assert f"| –, {record['accuracy']['student'][1]:.2f} |" in table


def test_an_agreement_of_other_weights_or_images_is_not_used(teacher, tmp_path):
    torch.manual_seed(2)
    student = make_model("resnet8", 10)
    path = tmp_path / "resnet8_last.pth"
    images = load("digits", train=False).thinned(40)

    def found(images, amp=None):
        loader = EvaluationLoader(images, 64)
        computed = agreement.Agreement(teacher, None, loader, torch.device("cpu"), amp)
        return computed.of(path, "resnet8")["agreement"]

    torch.save({"model": student.state_dict()}, path)
    before = found(images)
    saved = json.loads((tmp_path / "agreement.json").read_text())
    assert saved["agreement"] == before
    (tmp_path / "agreement.json").write_text(json.dumps(saved | {"agreement": 12.5}))
    assert found(images) == 12.5
    assert found(images, "bf16") != 12.5
    # The teacher's own weights agree with it everywhere.
    torch.save(torch.load(teacher, weights_only=True), path)
    assert found(images) == 100
    (tmp_path / "agreement.json").write_text(
        (tmp_path / "agreement.json").read_text().replace("100.0", "12.5")
    )
    assert found(images) == 12.5
    assert found(load("digits", train=False).thinned(39)) == 100


@pytest.mark.parametrize(
    ("these", "others", "mean", "half"),
    [
        # Differences 2, 3, 1: deviation 1; a table of Student's t has 4.302653 for 2 degrees.
        ([3.0, 5.0, 7.0], [1.0, 2.0, 6.0], 2.0, 4.302653 / 3**0.5),
        # Seeds that lack one of the two are left out; differences 1 and 3, deviation √2; 12.706205
        # for 1 degree.
        ([2.0, 9.0, None, 5.0], [1.0, None, 4.0, 2.0], 2.0, 12.706205),
        ([2.0], [1.5], 0.5, None),
    ],
)
def test_paired_differences(these, others, mean, half):
    found = paired_difference(these, others)
    assert found["mean"] == mean
    if half is None:
        assert (found["low"], found["high"]) == (None, None)
        assert with_interval(found) == "+0.50"
    else:  # seven digits of the table
        assert found["low"] == pytest.approx(mean - half, abs=1e-6)
        assert found["high"] == pytest.approx(mean + half, abs=1e-6)
    assert paired_difference([1.0, None], [None, 2.0]) is None


def test_a_table_by_hand(tmp_path):
    record = {
        "accuracy": {"student": [70.0, 72.0], "RRD 2025": [71.0, 75.0], "KD": [None, None]},
        "agreement": {"student": [50.0, 60.0], "RRD 2025": [70.0, 71.0]},
        "seconds_per_epoch": {"student": [10.0, 12.0], "RRD 2025": [20.0, 20.5]},
    }
    table = markdown(record, None)
    # Differences 1 and 3: 2 ± 12.706205.
    first = "| RRD 2025 | 73.00 ± 2.83 | 71.00, 75.00 | +2.00 [−10.71, +14.71] | 70.50 | 20.2 |"
    second = "| student | 71.00 ± 1.41 | 70.00, 72.00 | – | 55.00 | 11.0 |"
    assert f"{first}\n{second}\n" in table
    assert "− KD" not in table
    assert "**Missing**, not finished or failed: KD, seed 0; KD, seed 1." in table
    digits = SCRIPTS / "results" / "digits.json"
    assert "| RRD+KD 2025 | 79.02 ± 6.43 |" in markdown(COMPARISON.read(digits), None)


@pytest.mark.parametrize(
    ("means", "cut_off"),
    [
        # The best is 1 above the median, 90: what is under 87.
        ({"A": 91, "KD": 90.5, "B": 90, "student": 89, "D": 86.9}, ["D"]),
        ({"A": 91, "KD": 90.5, "B": 90, "student": 89, "D": 87.1}, []),
        ({"A": 91, "B": 90.5, "C": 90, "D": 60, "E": 50}, ["D", "E"]),
        ({"A": 91, "B": 90.5, "C": 90, "student": 70, "KD": 60}, []),
        ({"A": 91, "B": 90, "C": 50}, ["C"]),
        ({"A": 91, "B": 50}, []),
        ({"A": 90, "B": 90, "C": 90, "D": 89.9}, []),
    ],
    ids=["far", "near", "two", "references", "of three", "of two", "equal"],
)
@pytest.mark.parametrize("spread", [[0], [0.1, -0.15, 0.05]], ids=["one seed", "seeds"])
def test_a_method_far_below_the_others_does_not_take_the_axis_from_them(means, cut_off, spread):
    accuracy = {method: [mean + each for each in spread] for method, mean in means.items()}
    if len(spread) > 1:  # an interval wider than its seeds
        accuracy["A"] = [means["A"] + each for each in (0.2, 0.1, -0.3)]
    record = {"accuracy": accuracy}
    figure = COMPARISON.draw(record)
    [axes], [legend] = figure.axes, figure.legends
    names = [label.get_text().split("\n") for label in axes.get_yticklabels()]
    assert [name for name, *_ in names] == list(means)
    deviation = "" if len(spread) == 1 else " ± 0.13"
    written = {name: figures for name, *figures in names if figures}
    assert written == {name: [f"{means[name]:.2f}{deviation}"] for name in cut_off}
    across = axes.get_yaxis_transform()
    below = 0 if len(spread) == 1 else 0.17
    arrows = [
        line for line in axes.lines if line.get_transform() == across and len(line.get_xdata())
    ]
    arrows = [line.get_ydata()[0] for line in arrows if line.get_marker() == "<"]
    assert arrows == [list(means).index(name) + below for name in cut_off]
    said = [text.get_text() for text in legend.get_texts()]
    assert ("a seed" in said, "mean" in said) == (len(spread) > 1,) * 2
    assert ("more of it is further left" in said) == bool(cut_off)
    left, right = axes.get_xlim()
    rows = {row["method"]: row for row in summary(record)}
    for method, by_seed in accuracy.items():
        difference = rows[method]["differences"].get("student") or {}
        extent = [*by_seed]
        if difference.get("low") is not None:
            extent += [rows["student"]["mean"] + difference[end] for end in ("low", "high")]
        if method in cut_off:
            assert min(extent) < left
        else:
            assert left < min(extent) <= max(extent) < right


def test_the_axis_has_room_for_the_others_and_no_more():
    record = {"accuracy": {"A": [91, 91.4], "B": [90, 90.2], "C": [90, 89], "D": [50, 51]}}
    [axes] = COMPARISON.draw(record).axes
    assert axes.get_xlim() == pytest.approx((89 - 0.05 * 2.4, 91.4 + 0.05 * 2.4))
    # As wide as the student's line needs it: nothing is cut off, and no arrow says so.
    record["accuracy"]["student"] = [30, 31]
    [axes] = COMPARISON.draw(record).axes
    assert not any("\n" in label.get_text() for label in axes.get_yticklabels())
    [axes] = COMPARISON.draw({"accuracy": {"A": []}}).axes  # before any run has ended
    assert axes.get_yticklabels() == []


PATH = ["--path_t", "resnet8_x/x.pth"]


@pytest.mark.parametrize(
    ("script", "arguments", "text"),
    [
        (compare, [], "give --path_t, or --table with a record"),
        (compare, ["--path_t", "x", "--methods", "kd"], "no method is called 'kd'"),
        (compare, [*PATH, "--methods", "KD", "-a", "1"], "sets alpha of the runs, here 0.9"),
        (compare, [*PATH, "--seed", "7"], "sets seed of the runs, here 0: give it without seed 7"),
        (compare, [*PATH, "--methods", "RRD 2025", "--protocol", "2024"], "sets protocol"),
        (compare, [*PATH, "--methods", "CRD -b 0.1", "-b", "2"], "sets beta of the runs, here 0.1"),
        (compare, [*PATH, "--output", "/proc/here/X.json"], "cannot write to /proc/here: No such"),
        (study, [*PATH, "--vary", "nce_k=64", "--trial", "a"], "sets trial of the runs"),
        (study, [*PATH, "--vary", "hint_layer=1"], "hint_layer=1 changes nothing with"),
        (compare, ["--path_t", "x", "--seeds", "0"], "must be at least 1; got 0"),
        (compare, ["--path_t", "x", "--jobs", "0"], "must be at least 1; got 0"),
        (compare, ["--path_t", "x", "--output", "x.md"], "must end in .json; got x.md"),
        (compare, ["--table", "x.json", "--epochs", "3"], "give it without --epochs 3"),
        (compare, ["--path_t", "x", "--epoch", "3", "--nce"], "unrecognized|ambiguous"),
        (compare, ["--table", "missing.json"], "missing.json"),
        (compare, ["--path_t", "resnet8_x/missing.pth", *TINY], "missing.pth"),
        (compare, ["--path_t", "unnamed/x.pth", *TINY], "does not begin with an architecture"),
        (study, ["--path_t", "x"], "give --vary NAME=V,V,... once for each"),
        (study, ["--path_t", "x", "--vary", "nce_q=1"], "to vary is called 'nce_q'; there are"),
        (study, ["--path_t", "x", "--vary", "seed=1,2"], "to vary is called 'seed'; there are"),
        (study, ["--path_t", "x", "--vary", "nce_k="], "give values, such as nce_k=1,2"),
        (study, ["--path_t", "resnet8_x/x.pth", "--vary", "nce_k=ten"], "invalid int value: 'ten'"),
        (study, ["--path_t", "resnet8_x/x.pth", "--vary", "nce_k=8"], "at least --batch_size, 64"),
        (transfer_compare, [], "the following arguments are required: X.json"),
        (transfer_compare, ["missing.json"], "missing.json"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_anything_is_written(
    script, arguments, text, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        compare.flags.run_script(lambda: script.main(arguments))
    said = capsys.readouterr().err + str(ended.value.code)
    assert any(part in said for part in text.split("|"))
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_no_records(tmp_path):
    path = tmp_path / "x.json"
    for content, text in (("{", "is no JSON record"), ("[1]", "no record of a comp")):
        path.write_text(content)
        with pytest.raises(ValueError, match=text):
            STUDY.read(path)
    path.write_text(json.dumps({"accuracy": {}, "factors": {}}))
    with pytest.raises(ValueError, match=r"is a record for study.py --table"):
        COMPARISON.read(path)
    path.write_text(json.dumps({"accuracy": {}}))
    with pytest.raises(ValueError, match=r"is a record for compare.py --table"):
        STUDY.read(path)
    with pytest.raises(ValueError, match="is not a record of students"):
        transfer_compare.main([str(path)])
    path.write_text(json.dumps({"accuracy": {}, "student_digest": {}}))
    with pytest.raises(ValueError, match="would replace the record"):
        transfer_compare.main([str(path), "--output", str(path)])


def test_a_study(teacher, tmp_path, started, capsys):
    own = ["--vary", "nce_k=8,16", "--vary", "nce_t_s=0.2", "--levels", "student"]
    study.main(arguments_of(teacher, tmp_path, *own))
    settings = {
        task.name: json.loads((task.folder / "settings.json").read_text()) for task in started
    }
    varied = {name: (each["nce_k"], each["nce_t_s"]) for name, each in settings.items()}
    assert varied == {
        "defaults, seed 0": (16, 0.1),
        "nce_k=8, seed 0": (8, 0.1),
        "nce_t_s=0.2, seed 0": (16, 0.2),
        "student, seed 0": (16, None),
    }
    assert [each["distill"] for each in settings.values()] == [*["rrd"] * 3, "none"]
    record = STUDY.read(tmp_path / "X.json")
    accuracy = {name: values[0] for name, values in record["accuracy"].items()}
    for task in started:
        name = task.name.removesuffix(", seed 0")
        assert accuracy[name] == float(rows_of(task.folder)[-1]["test_acc"])
    table = (tmp_path / "X.md").read_text()
    lines = [
        f"| 8 | {accuracy['nce_k=8']:.2f} |",
        f"| 16 (default) | {accuracy['defaults']:.2f} |  |",
        f"| 0.1 (default) | {accuracy['defaults']:.2f} |  |",
        f"| 0.2 | {accuracy['nce_t_s=0.2']:.2f} |",
    ]
    places = [table.index(line) for line in lines]
    assert places == sorted(places)
    assert f"student: {accuracy['student']:.2f}." in table
    assert min(Image.open(tmp_path / "X.png").size) > 300
    capsys.readouterr()
    study.main(["--table", str(tmp_path / "X.json")])
    assert capsys.readouterr().out.strip() == STUDY.markdown(record, None).strip()


@pytest.mark.parametrize("factors", [["beta"], ["beta", "nce_k", "nce_t_s"]])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_legend_of_a_study_is_whole(factors, seeds):
    names = ["defaults", "2", "student", "KD"]
    record = {
        "accuracy": {name: [50.0 + at] * seeds for at, name in enumerate(names)},
        "factors": {name: {"runs": {"1": "defaults", "2": "2"}} for name in factors},
        "levels": names[2:],
    }
    figure = STUDY.draw(record)
    figure.canvas.draw()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert len(legend.get_texts()) == (4 if seeds == 1 else 5)


@pytest.mark.parametrize(
    ("given", "name", "default"),
    [
        ([], "nce_t_t", 0.02),
        (["--protocol", "2024"], "nce_t_t", 0.1),
        (["--nce_t_t", "0.3"], "nce_t_t", 0.3),
        ([], "projection_lr", 0.05),
        (["--learning_rate", "0.2"], "projection_lr", 0.2),
        (["--model_s", "ShuffleV1"], "learning_rate", 0.01),
    ],
)
def test_defaults_that_a_run_resolves(given, name, default):
    settings = train_student.parse_arguments(["--distill", "rrd", "--path_t", "x", *given])
    assert study.default_of(name, settings) == default


def test_a_method_with_options_of_its_own_is_a_row(teacher, tmp_path, started):
    methods = ["RRD 2025", "RRD 2025 -b 2 --nce_t_s 0.5"]
    compare.main(arguments_of(teacher, tmp_path, "--seeds", "1", "--methods", *methods))
    record = json.loads((tmp_path / "X.json").read_text())
    found = {name: (each["beta"], each["nce_t_s"]) for name, each in record["settings"].items()}
    assert found == dict(zip(methods, [(1, 0.1), (2, 0.5)], strict=True))
    assert "| RRD 2025 -b 2 --nce_t_s 0.5 | " in (tmp_path / "X.md").read_text()


def test_a_run_without_its_files_is_a_failure(teacher, tmp_path, started, monkeypatch):
    real = train_student.main

    def main(arguments):
        real(arguments)
        if "student_0" in arguments:
            (folder,) = tmp_path.glob("student_model/*student_0")
            (folder / "settings.json").unlink()

    monkeypatch.setattr(train_student, "main", main)
    with pytest.raises(SystemExit, match=r"student, seed 0: .* lacks epoch 2 in epochs.csv, or"):
        compare.main(arguments_of(teacher, tmp_path, "--seeds", "2", "--methods", "student"))
    found = json.loads((tmp_path / "X.json").read_text())["accuracy"]["student"]
    assert found[0] is None
    assert found[1] is not None


def test_probes_of_a_comparison(teacher, tmp_path, started):
    """Of the weights after the last epoch; a run that is missing in the comparison is here too."""
    compare.main(arguments_of(teacher, tmp_path, "--seeds", "2", "--methods", "student"))
    record = json.loads((tmp_path / "X.json").read_text())
    record["accuracy"]["student"][0] = None
    (tmp_path / "X.json").write_text(json.dumps(record))
    started.clear()
    common = ["--save_folder", str(tmp_path), "--output", str(tmp_path / "Y.json"), *TINY[:6]]
    transfer_compare.main([str(tmp_path / "X.json"), "--dataset", "digits", *common])
    found = json.loads((tmp_path / "Y.json").read_text())
    (task,) = started
    (student,) = task.inputs
    assert (task.name, student.name) == ("student, seed 1", "resnet8_last.pth")
    assert task.folder.name == f"{student.parent.name}_to_digits_0"
    assert json.loads((task.folder / "settings.json").read_text())["seed"] == 1
    probed = float(rows_of(task.folder)[-1]["test_acc"])
    assert found["accuracy"] == {"student": [None, probed]}
    assert found["students"] == record["settings"]
    assert "Linear probe of students resnet8 on digits" in (tmp_path / "Y.md").read_text()
    record["student_digest"]["student"][1] = "another"
    (tmp_path / "X.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"resnet8_last.pth has been trained anew"):
        transfer_compare.main([str(tmp_path / "X.json"), "--dataset", "digits", *common])
    with pytest.raises(FileNotFoundError, match=r"no student of student, seed 1, .*--save_folder"):
        transfer_compare.main([str(tmp_path / "X.json"), "--save_folder", str(tmp_path / "other")])


@pytest.mark.long
def test_a_comparison_killed_with_real_trainings(teacher, tmp_path):
    """The processes of train_student.py themselves: the one that is left trains on, and the next
    call waits for it. All ends as in a comparison that was not killed."""
    found = []
    for name in ("whole", "killed"):
        own = ["--methods", "student", "KD", "--seeds", "1", "--jobs", "1", "--save_steps", "1"]
        arguments = arguments_of(teacher, tmp_path / name, *own)
        command = [sys.executable, str(SCRIPTS / "compare.py"), *arguments]
        if name == "killed":
            parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while not list((tmp_path / name).glob("student_model/*/lock")):
                assert parent.poll() is None
                time.sleep(0.01)
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / name / "X.json").read_text()))
    whole, killed = found
    assert killed["accuracy"] == whole["accuracy"]
    assert killed["agreement"] == whole["agreement"]
    for run in (tmp_path / "killed").glob("student_model/NONE*"):
        # The second process found nothing to do.
        assert (run / "log.txt").read_text().count("epoch   1") == 1
