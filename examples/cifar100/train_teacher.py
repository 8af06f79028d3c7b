"""Trains one network with cross-entropy: a teacher, or a student alone.

    python examples/cifar100/train_teacher.py --model resnet8x4 --epochs 5
    python examples/cifar100/train_teacher.py --dataset cifar100 --model resnet32x4

The run's folder is <save_folder>/models/<model>_<dataset>_trial_<trial>.
"""

import argparse

from torch import Tensor
from torch.nn.functional import cross_entropy

import options as flags
from engine import Trainer, make_data, prepare
from images.data import DATA_SETS
from models import make_model
from run import Run


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    flags.add_architecture(
        parser.add_argument_group("model"), "--model", "architecture to train", "resnet110"
    )
    flags.add_data(parser, tuple(DATA_SETS))
    flags.add_optimization(parser)
    flags.add_run(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    device = prepare(options)
    options.device = device.type  # which of several is no part of the run
    options.learning_rate = flags.learning_rate_of(options.model, options.learning_rate)
    train, loaders = make_data(options, device)
    name = f"{options.model}_{options.dataset}_trial_{options.trial}"
    run = Run(options.save_folder / "models" / name, options.model, resume=options.resume)

    model = make_model(options.model, len(train.classes)).to(device)
    flags.apply_to_model(options, model)

    def step(
        images: Tensor, labels: Tensor, idx: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        logits = model(images)
        return cross_entropy(logits.float(), labels), {}, logits

    trainer = Trainer(
        options, run, model, {"model": model}, step, loaders, device, options.learning_rate
    )
    best = trainer.fit()
    print(f"best test accuracy {best:.2f} %, checkpoint {run.best}")


if __name__ == "__main__":
    flags.run_script(main)
