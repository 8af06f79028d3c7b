"""Draws finished runs: training curves, correlations of logits, features.

    python examples/cifar100/plot.py curves save/student_model/* --output curves.png
    python examples/cifar100/plot.py correlation --path_t TEACHER.pth --path_s STUDENT.pth ...
    python examples/cifar100/plot.py tsne --path_t TEACHER.pth --path_s STUDENT.pth ...

correlation and tsne draw several students side by side. plot.py PICTURE --help lists the options of
a picture.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from sklearn.manifold import TSNE

import options as flags
from images.data import DATA_SETS, ImageSet, load
from images.loaders import EvaluationLoader
from methods import method_of
from models import ImageClassifier
from teacher import load_teacher

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DPI = 150


def label_of(folder: Path) -> str:
    """A run's name in a picture: student, method and seed where they say it all, else its
    folder's."""
    path = folder / "settings.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    method = method_of(settings) if "distill" in settings else None
    return f"{settings['model_s']}, {method}, seed {settings['seed']}" if method else folder.name


def curves(folders: list[Path], output: Path) -> None:
    """Training loss and test accuracy of each run, by epoch."""
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for folder in folders:
        if not (folder / "epochs.csv").exists():
            print(f"skipped: {folder} has no finished epoch")
            continue
        with (folder / "epochs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        marker = "o" if len(rows) < 10 else None
        loss.plot(epochs, [float(row["train_loss"]) for row in rows], marker=marker)
        accuracies = [float(row["test_acc"]) for row in rows]
        accuracy.plot(epochs, accuracies, marker=marker, label=label_of(folder))
    for axes, name in ((loss, "training loss, total"), (accuracy, "test accuracy, %")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    _save(figure, output)


class Outputs(NamedTuple):
    """What a network makes of N images: features [N, dim], logits [N, classes], labels [N]."""

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def outputs(network: ImageClassifier, images: ImageSet, count: int) -> Outputs:
    """Of N = ``count`` images."""
    features, logits, labels = [], [], []
    for batch in EvaluationLoader(images.thinned(count), 256):
        found, scores = network(batch.images, is_feat=True)
        features.append(found[-1])
        logits.append(scores)
        labels.append(batch.labels)
    return Outputs(*(torch.cat(parts).numpy() for parts in (features, logits, labels)))


def correlation_difference(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """[classes, classes]: the correlation of classes' logits [N, classes], teacher's less
    student's."""
    return np.corrcoef(teacher, rowvar=False) - np.corrcoef(student, rowvar=False)


def correlation(differences: dict[str, np.ndarray], classes: tuple[str, ...], output: Path) -> None:
    """Each student's :func:`correlation_difference`: pale where it has the teacher's relations."""
    largest = max(np.abs(difference).max() for difference in differences.values())
    figure, axes = plt.subplots(
        1,
        len(differences),
        figsize=(5 * len(differences) + 1.5, 6),
        squeeze=False,
        layout="constrained",
    )
    for ax, (name, difference) in zip(axes[0], differences.items(), strict=True):
        image = ax.imshow(difference, cmap="RdBu_r", vmin=-largest, vmax=largest)
        ax.set_title(f"{name}\nmean |difference| {np.abs(difference).mean():.3f}", fontsize=9)
        if len(classes) <= 20:
            ax.set_xticks(range(len(classes)), classes, rotation=90)
            ax.set_yticks(range(len(classes)), classes)
    bar = figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8)
    bar.set_label("correlation of logits, teacher − student")
    _save(figure, output)


def tsne(
    networks: dict[str, np.ndarray], labels: np.ndarray, classes: tuple[str, ...], output: Path
) -> None:
    """Each network's features [N, dim] in two dimensions, coloured by class [N].

    Of many classes twenty are drawn, evenly spaced: colours could not tell more apart.
    """
    shown = np.unique(np.linspace(0, len(classes) - 1, min(len(classes), 20)).astype(int))
    kept = np.isin(labels, shown)
    labels = labels[kept]
    networks = {name: features[kept] for name, features in networks.items()}
    figure, axes = plt.subplots(
        1, len(networks), figsize=(4.5 * len(networks), 4.8), squeeze=False, layout="constrained"
    )
    colours = plt.get_cmap("tab20" if len(shown) > 10 else "tab10")
    for ax, (name, features) in zip(axes[0], networks.items(), strict=True):
        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
        for number, label in enumerate(np.unique(labels)):
            own = points[labels == label]
            colour = colours(number % colours.N)
            ax.scatter(*own.T, s=6, color=colour, label=classes[label])
        ax.set_title(name, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8, markerscale=2)
    _save(figure, output)


def _save(figure: plt.Figure, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=DPI)
    plt.close(figure)
    print(f"picture written to {output}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    pictures = parser.add_subparsers(
        dest="picture", required=True, metavar="PICTURE", prog=parser.prog
    )

    def add_picture(name: str, meaning: str) -> argparse.ArgumentParser:
        picture = pictures.add_parser(
            name,
            help=meaning,
            description=f"Draws the {meaning}.",
            formatter_class=flags.HelpFormatter,
            epilog=parser.epilog if name != "curves" else None,
        )
        picture.add_argument(
            "--output",
            default=Path(f"{name}.png"),
            type=Path,
            metavar="PATH",
            help="picture, a .png, .pdf or .svg file; an existing file is replaced",
        )
        return picture

    picture = add_picture("curves", "training loss and test accuracy of each run, by epoch")
    picture.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run, with its epochs.csv; a run without one is skipped",
    )
    for name, meaning in (
        ("correlation", "correlations of the logits, teacher minus student"),
        ("tsne", "t-SNE of the features of the teacher and of each student"),
    ):
        picture = add_picture(name, meaning)
        picture.add_argument(
            "--path_t",
            type=Path,
            required=True,
            metavar="PATH",
            help="teacher's checkpoint, a .pth file; required",
        )
        picture.add_argument("--model_t", metavar="ARCH", help=flags.MODEL_T)
        picture.add_argument(
            "--path_s",
            type=Path,
            nargs="+",
            required=True,
            metavar="PATH",
            help="students' checkpoints, .pth files in their runs' folders; required",
        )
        picture.add_argument(
            "--dataset",
            default="digits",
            choices=tuple(DATA_SETS),
            metavar="NAME",
            help=f"data set that the networks were trained on: {', '.join(DATA_SETS)}",
        )
        picture.add_argument(
            "--classes",
            type=flags.classes,
            metavar="N,N,...",
            help="classes that they were trained on, such as 0-4 or 1,3,5 (default: all)",
        )
        picture.add_argument(
            "--data_folder", default="data", type=Path, metavar="DIR", help="folder of the data set"
        )
        picture.add_argument(
            "--images",
            default=2000,
            type=flags.at_least(10),
            metavar="N",
            help="use at most N test images, evenly spaced, at least 10",
        )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.picture == "curves":
        curves(options.runs, options.output)
        return
    images = load(options.dataset, options.data_folder, train=False).of_classes(options.classes)
    classes = len(images.classes)
    teacher = outputs(
        load_teacher(options.path_t, classes, options.model_t), images, options.images
    )
    students: dict[str, Outputs] = {}
    for path in options.path_s:
        label = label_of(path.absolute().parent)
        if label in students:
            label = f"{label}/{path.stem} ({len(students)})"
        students[label] = outputs(load_teacher(path, classes), images, options.images)
    if options.picture == "correlation":
        differences = {
            name: correlation_difference(teacher.logits, found.logits)
            for name, found in students.items()
        }
        correlation(differences, images.classes, options.output)
    else:
        features = {"teacher": teacher.features}
        features |= {name: found.features for name, found in students.items()}
        tsne(features, teacher.labels, images.classes, options.output)


if __name__ == "__main__":
    flags.run_script(main)
