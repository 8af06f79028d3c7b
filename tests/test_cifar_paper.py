"""The published table of examples/cifar100, its commands, and one's own runs in it."""

import json
from collections import Counter
from pathlib import Path

import pytest

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

import options as flags
import paper
import train_student
import train_teacher
from methods import PUBLISHED_TABLE, method_of
from rrd_kernels import RRDLoss
from teacher import architecture_of

PAIR = paper.Pair("resnet32x4", "resnet8x4")
PARSERS = {
    "train_teacher.py": train_teacher.parse_arguments,
    "train_student.py": train_student.parse_arguments,
}


def settings_of(command):
    """As the script that the command runs resolves its arguments."""
    python, script, *arguments = command
    assert python == "python"
    settings = PARSERS[script](arguments)
    model = settings.model if script == "train_teacher.py" else settings.model_s
    settings.learning_rate = flags.learning_rate_of(model, settings.learning_rate)
    if getattr(settings, "path_t", None) is not None:
        settings.model_t = settings.model_t or architecture_of(settings.path_t)
    if getattr(settings, "beta", 0) and settings.distill == "rrd":
        published = RRDLoss(s_dim=1, t_dim=1, nce_k=1, protocol=settings.protocol)
        settings.nce_t_s = settings.nce_t_s or published.tau_s
        settings.nce_t_t = settings.nce_t_t or published.tau_t
    return flags.plain_settings(settings)


def test_the_results_quote_the_published_numbers():
    text = (Path(paper.__file__).parent / "RESULTS.md").read_text()
    assert len(paper.published()) == 13
    for pair, numbers in paper.published().items():
        figures = [f"{numbers[column]:.2f}" for column in paper.COLUMNS]
        assert f"| {' | '.join([*pair, *figures])} |\n" in text
    rows = paper.published().values()
    alone, with_kd = (
        sum(row[f"CRD{kd}"] > row[f"RRD{kd} 2025"] for row in rows) for kd in ("", "+KD")
    )
    assert f"CRD is above RRD 2025 in {alone} of the 13 rows" in text
    assert f"and CRD+KD above RRD+KD\n  2025 in {with_kd}." in text


def test_the_results_count_the_rows_that_each_method_wins():
    best = []
    for row in paper.published().values():
        methods = {name: value for name, value in row.items() if name != "teacher"}
        best.append({name for name in methods if methods[name] == max(methods.values())})
    wins = Counter(method for methods in best for method in methods)
    level = sum({"RRD+KD 2025", "RRD+KD 2024"} == methods for methods in best)
    text = " ".join((Path(paper.__file__).parent / "RESULTS.md").read_text().split())
    assert wins.keys() == {"RRD+KD 2025", "RRD+KD 2024", "CRD+KD", "CRD"}
    assert level == wins["RRD+KD 2024"]
    assert (
        f"RRD+KD 2025 is the highest of all methods in {wins['RRD+KD 2025']} rows (in {level} of "
        f"them level with RRD+KD 2024), CRD+KD in {wins['CRD+KD']}, CRD in {wins['CRD']}."
    ) in text


def test_each_command_is_a_method_of_its_own():
    _teacher, *students = paper.commands(PAIR, 2, Path("save"))
    found = [settings_of(command) for command in students]
    assert [method_of(settings) for settings in found] == [
        method for method in PUBLISHED_TABLE for _seed in range(2)
    ]
    assert len({(settings["trial"], settings["distill"]) for settings in found}) == len(found)
    for settings in found:
        assert (settings["dataset"], settings["epochs"]) == ("cifar100", 240)


@pytest.mark.parametrize(
    ("weights", "method"),
    [
        ("--distill kd -r 0.1 -a 0.9 -b 0", "KD"),
        ("--distill crd -a 0 -b 0.8", "CRD"),
        ("--distill crd -a 1 -b 0.8", "CRD+KD"),
    ],
)
def test_the_published_command_is_a_method(weights, method):
    # As RepDistiller's README and the published README have it.
    line = (
        f"--path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth {weights} --model_s "
        f"resnet8x4 --trial 1"
    )
    assert method_of(flags.plain_settings(train_student.parse_arguments(line.split()))) == method


@pytest.mark.parametrize(
    "others",
    [
        *(["-b", "2"], ["-r", "0.5"], ["--memory_type", "momentum"], ["-b", "0.8"]),
        *(["--distill", "crd", "-b", "1"], ["--distill", "crd", "--mode", "relax"]),
    ],
    ids=" ".join,
)
def test_other_settings_are_none_of_the_methods(others):
    settings = train_student.parse_arguments(["--distill", "rrd", "--path_t", "teacher", *others])
    assert method_of(flags.plain_settings(settings)) is None


def write_run(folder, settings, accuracies):
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    rows = [f"{epoch},{accuracy}" for epoch, accuracy in enumerate(accuracies, start=1)]
    (folder / "epochs.csv").write_text("\n".join(["epoch,test_acc", *rows]))


def test_own_runs_stand_below_the_published(tmp_path, capsys):
    teacher, *students = map(settings_of, paper.commands(PAIR, 2, tmp_path))
    write_run(tmp_path / "models" / "teacher", teacher, [10.0] * 239 + [79.0])
    runs = tmp_path / "student_model"
    for at, settings in enumerate(students):
        write_run(runs / str(at), settings, [99.0] * 239 + [60.0 + at])
    # Neither counts: one that has not ended, one of another data set.
    write_run(runs / "unfinished", students[0] | {"seed": 2}, [99.0] * 239)
    # Nor one with other settings; nor a second one with the same seed.
    for at, other in enumerate(OTHER):
        write_run(runs / f"other {at}", students[-1] | {"seed": 2} | other, [99.0] * 240)
    write_run(runs / "the same again", students[0], [99.0] * 240)
    # Nor another method than the table's.
    other = {"distill": "attention", "beta": 1000.0, "hint_layer": None}
    write_run(runs / "AT", students[-1] | {"alpha": 0.0} | other, [99.0] * 240)
    write_run(tmp_path / "transfer" / "probe", {"dataset": "cifar100"}, [99.0] * 240)

    found = paper.own(tmp_path)
    accuracies = {"teacher": [79.0]} | {
        method: [60.0 + 2 * at, 61.0 + 2 * at] for at, method in enumerate(PUBLISHED_TABLE)
    }
    assert found.pop(PAIR) == accuracies
    assert found == {paper.Pair("resnet32x4", name): {"teacher": [79.0]} for name in SHUFFLE}

    paper.main(["--save_folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "60.50 ± 0.71" in printed
    assert "70.50 ± 0.71" in printed


SHUFFLE = ("ShuffleV1", "ShuffleV2")
OTHER = (
    {"dataset": "digits"},
    {"images": 500},
    {"nce_k": 64},
    {"learning_rate": 0.5},
    {"lr_decay_epochs": [1, 2]},
    {"kd_T": 1.0},
    {"nce_t_t": 9.0},
    {"nce_m": 0.9},
    {"held_out": 5000},
    {"classes": [0, 1]},
    {"projection_lr": 9.0},
)


def test_commands_of_all_rows_name_each_run_once(capsys):
    paper.main(["commands"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines))
    assert sum("train_teacher.py" in line for line in lines) == len(
        {pair.teacher for pair in paper.published()}
    )
    with pytest.raises(SystemExit):
        paper.main(["commands", "resnet8x4", "resnet32x4"])
    assert "no row has teacher and student resnet8x4 resnet32x4" in capsys.readouterr().err
