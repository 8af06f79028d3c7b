"""Trains a linear probe on the features of a frozen student: how well they transfer to a data set.

    python examples/cifar100/transfer_student.py --dataset stl10 \\
        --path_s save/student_model/.../resnet8x4_best.pth

The run's folder is <save_folder>/transfer/<student's folder>_to_<dataset>_<trial>.
"""

import argparse
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import options as flags
from engine import Trainer, make_data, prepare
from images.data import DATA_SETS
from models import ImageClassifier, model_dict
from run import Run
from teacher import classes_of, load_teacher


class Probe(nn.Module):
    """One linear layer, made on the CPU, on the last feature of a frozen network.

    Args:
        network: what makes features of images [B, 3, 32, 32]; stays in evaluation mode.
        num_classes: of the data set that is probed.
    """

    def __init__(self, network: ImageClassifier, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.Linear(network.feature_dim, num_classes, device="cpu")

    def train(self, mode: bool = True) -> "Probe":
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self.network(images, is_feat=True)
        return self.linear(features[-1])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    group = parser.add_argument_group("student")
    group.add_argument(
        "--path_s",
        type=Path,
        required=True,
        metavar="PATH",
        help="student's checkpoint, a .pth file; required",
    )
    flags.add_architecture(
        group,
        "--model_s",
        "student's architecture (default: from the file name, <ARCH>_best.pth or <ARCH>_last.pth)",
    )
    flags.add_data(parser, tuple(DATA_SETS))
    flags.add_optimization(parser)
    flags.add_run(parser)
    parser.set_defaults(epochs=120, lr_decay_epochs="30,60,90", save_freq=50)
    options = parser.parse_args(arguments)
    if options.model_s is None:
        options.model_s = options.path_s.stem.removesuffix("_best").removesuffix("_last")
        if options.model_s not in model_dict:
            parser.error(
                f"give --model_s, the student's architecture: the name {options.path_s.name} is "
                f"not <ARCH>_best.pth or <ARCH>_last.pth"
            )
    return options


def folder_of(options: argparse.Namespace) -> Path:
    """Where a run with these options writes."""
    name = f"{options.path_s.absolute().parent.name}_to_{options.dataset}_{options.trial}"
    return options.save_folder / "transfer" / name


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    device = prepare(options)
    options.device = device.type  # which of several is no part of the run
    options.learning_rate = flags.learning_rate_of(options.model_s, options.learning_rate)
    train, loaders = make_data(options, device)
    student = load_teacher(options.path_s, classes_of(options.path_s), options.model_s)
    options.student_digest = flags.digest_of(student)
    probe = Probe(student, len(train.classes)).to(device)

    run = Run(folder_of(options), "probe", resume=options.resume)
    flags.apply_to_model(options, probe)

    def step(
        images: Tensor, labels: Tensor, idx: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        logits = probe(images)
        return cross_entropy(logits.float(), labels), {}, logits

    modules = {"model": probe}
    trainer = Trainer(options, run, probe, modules, step, loaders, device, options.learning_rate)
    best = trainer.fit()
    print(f"best test accuracy of the linear probe {best:.2f} %, checkpoint {run.best}")


if __name__ == "__main__":
    flags.run_script(main)
