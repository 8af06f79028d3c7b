"""The command lines: the published scripts' flags, names and defaults, and a few more."""

import argparse
import hashlib
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import files
import lock
from models import model_dict

#: The help of --model_t, here and in plot.py.
MODEL_T = (
    "teacher's architecture; needed unless the folder of its checkpoint is named ARCH, ARCH_..., "
    "cifar100_ARCH_..., cifar10_ARCH_... or ..._S_ARCH_... (default: from that name)"
)
#: Learning rates that the published scripts start these students with; others start with 0.05.
SMALL_LEARNING_RATE = {"MobileNetV2": 0.01, "ShuffleV1": 0.01, "ShuffleV2": 0.01}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults are shown where there are any, names and meanings side by side."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False
        if plain or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _Ignored(argparse.Action):
    """Of the published scripts, and of no use here: old command lines go on working."""

    def __call__(self, *_: Any) -> None:
        pass


def _epochs(text: str) -> tuple[int, ...]:
    """'150,180,210' as published."""
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be epochs separated by commas, such as 150,180,210; got {text!r}"
        ) from None


def classes(text: str) -> tuple[int, ...]:
    """'0-4,7' as numbers."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = []
    if len(numbers) < 2 or len({*numbers}) < len(numbers):
        raise argparse.ArgumentTypeError(
            f"must be at least two different classes by number, such as 0-4 or 1,3,5; got {text!r}"
        )
    return tuple(numbers)


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """An argument's type: a number that is not below ``least``."""

    def parse(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}; got {text}")
        return value

    parse.__name__ = "number"
    return parse


def parser_of(description: str | None) -> argparse.ArgumentParser:
    architectures = f"ARCH is one of {', '.join(model_dict)}"
    return argparse.ArgumentParser(
        description=description,
        epilog=textwrap.fill(architectures, 98),
        formatter_class=HelpFormatter,
        usage="%(prog)s [options]",
    )


def add_architecture(
    group: argparse._ArgumentGroup, name: str, help: str, default: str | None = None
) -> None:
    group.add_argument(name, default=default, choices=model_dict, metavar="ARCH", help=help)


def add_data(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default="digits",
        choices=datasets,
        metavar="NAME",
        help=f"data set: {', '.join(datasets)}. digits comes with scikit-learn, the others are "
        "downloaded if they are not in --data_folder, and fashion-mnist is also found where "
        "Debian's dataset-fashion-mnist is installed; tinyimagenet is another name of "
        "tiny-imagenet",
    )
    group.add_argument(
        "--data_folder",
        default="data",
        type=Path,
        metavar="DIR",
        help="folder of the data sets",
    )
    group.add_argument(
        "--images",
        type=at_least(1),
        metavar="N",
        help="use at most N training and N test images, evenly spaced, at least 1 (default: all)",
    )
    group.add_argument(
        "--held_out",
        type=at_least(1),
        metavar="N",
        help="hold N training images out, evenly spaced, and test on them in place of the test "
        "images: to choose settings by them, with a teacher that was trained with the same N; the "
        "run's folder does not name it: give --trial or --save_folder too; at least 1 (default: "
        "none)",
    )
    group.add_argument(
        "--classes",
        type=classes,
        metavar="N,N,...",
        help="use the images of these classes only, such as 0-4 or 1,3,5; the run's folder does "
        "not name them: give --trial too (default: all)",
    )
    group.add_argument(
        "--batch_size",
        default=64,
        type=at_least(1),
        metavar="B",
        help="images per batch, of all processes together, at least 1",
    )
    group.add_argument(
        "--loader",
        default="device",
        choices=("device", "workers"),
        help="device: keep all images on the device as bytes and augment them there; workers: "
        "load them with PIL in --num_workers processes",
    )
    group.add_argument(
        "--drop_last",
        action="store_true",
        help="drop a last batch that is smaller, as the published code of 2025 does (default: "
        "keep it)",
    )
    group.add_argument(
        "--num_workers",
        default=8,
        type=at_least(0),
        metavar="N",
        help="processes of --loader workers; 0 loads in the training process",
    )


def add_optimization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--epochs",
        default=240,
        type=at_least(1),
        metavar="N",
        help="passes over the training images, at least 1",
    )
    group.add_argument(
        "--learning_rate",
        type=at_least(0, float),
        metavar="RATE",
        help="first learning rate of SGD, at least 0 (default: 0.05; 0.01 for MobileNetV2, "
        "ShuffleV1 and ShuffleV2)",
    )
    group.add_argument(
        "--lr_decay_epochs",
        default="150,180,210",
        type=_epochs,
        metavar="N,N,...",
        help="epochs after which the learning rate is multiplied by --lr_decay_rate",
    )
    group.add_argument(
        "--lr_decay_rate",
        default=0.1,
        type=float,
        metavar="FACTOR",
        help="factor of the learning rate at each of --lr_decay_epochs",
    )
    group.add_argument(
        "--weight_decay", default=5e-4, type=float, metavar="DECAY", help="weight decay of SGD"
    )
    group.add_argument("--momentum", default=0.9, type=float, metavar="M", help="momentum of SGD")
    group.add_argument(
        "--accumulate",
        default=1,
        type=at_least(1),
        metavar="N",
        help="batches whose gradients are accumulated for one optimizer step, at least 1",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--trial",
        "-t",
        default="0",
        metavar="NAME",
        help="last part of the name of the run's folder, any text; it does not change the seed",
    )
    group.add_argument(
        "--seed",
        default=0,
        type=int,
        metavar="N",
        help="seed of the first weights, of the images' order and augmentation, at least 0",
    )
    group.add_argument(
        "--save_freq",
        default=40,
        type=at_least(1),
        metavar="N",
        help="keep a checkpoint ckpt_epoch_<epoch>.pth every N epochs, at least 1",
    )
    for unused in ("--print_freq", "--tb_freq"):
        group.add_argument(
            unused, action=_Ignored, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    add_save_folder(group)
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue from the run's last checkpoint; without one, start the run",
    )
    group.add_argument(
        "--save_steps",
        default=0,
        type=at_least(0),
        metavar="N",
        help="write the last checkpoint every N optimizer steps too; 0: only at the end of each "
        "epoch",
    )
    add_device(group)
    group.add_argument(
        "--amp",
        choices=("bf16", "fp16"),
        help="autocast to bfloat16, or to float16 with a gradient scaler (default: no autocast)",
    )
    group.add_argument(
        "--channels_last",
        action="store_true",
        help="keep networks and images in the channels-last memory format",
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile the network that is trained"
    )
    group.add_argument(
        "--graph",
        action="store_true",
        default=None,  # as in the settings of runs that were begun before there was this flag
        help="on one GPU, replay the training step of full batches as one CUDA graph; no GPU has "
        "run this yet",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="use deterministic algorithms: the same bits from run to run on a GPU too",
    )
    group.add_argument(
        "--quiet", action="store_true", help="print one line per epoch, without a progress bar"
    )


def add_save_folder(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--save_folder",
        default="save",
        type=Path,
        metavar="DIR",
        help="folder that holds a folder for each run",
    )


def add_output(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="write a JSON record to this file; an existing file is replaced (default: no record)",
    )


def add_jobs(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="trainings at a time, at least 1, which share the cores (default: one for each core; "
        "on a GPU 1)",
    )


def add_seconds(group: argparse._ActionsContainer, seconds: float) -> None:
    group.add_argument(
        "--seconds",
        default=seconds,
        type=float,
        metavar="S",
        help="seconds to measure, all rows together; no more than 20 s once there are three rounds",
    )


def add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--device",
        help="PyTorch device, such as cpu, cuda or cuda:1 (default: a GPU if there is one, else "
        "the CPU)",
    )


def learning_rate_of(model: str, given: float | None) -> float:
    """The published one where none is given."""
    return SMALL_LEARNING_RATE.get(model, 0.05) if given is None else given


def apply_to_model(options: argparse.Namespace, model: nn.Module) -> None:
    """Memory format and compilation, in place: the state_dict keeps its keys."""
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if options.compile:
        model.compile()


#: What may be another when a run goes on: it changes neither order, nor data, nor arithmetic.
MAY_CHANGE = (
    *("data_folder", "epochs", "num_workers", "quiet", "resume", "save_folder", "save_freq"),
    *("save_steps", "path_t", "path_s"),  # networks are known by their digest
)


def plain_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The resolved settings as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in sorted(vars(options).items())}


def check_unchanged(options: argparse.Namespace, saved: dict[str, Any]) -> None:
    """The settings of a run that goes on are those that it began with.

    Raises:
        ValueError: names what differs.
    """
    now = plain_settings(options)
    changed = [
        f"{name} was {saved.get(name)} and is {now.get(name)}"
        for name in sorted(saved.keys() | now.keys())
        if name not in MAY_CHANGE and saved.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"--resume needs the settings that the run began with: {'; '.join(changed)}. Give the "
            f"old values, or start a new run with another --trial or --save_folder"
        )


def write_settings(options: argparse.Namespace, path: Path) -> None:
    """The resolved settings as JSON beside the run."""
    files.write_text(path, json.dumps(plain_settings(options), indent=2) + "\n")


def digest_of(model: nn.Module) -> str:
    """Of a network's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def run_script(main: Callable[[], object]) -> None:
    """``main`` with what a user can mend as one line in place of a traceback."""
    try:
        main()
    except (FloatingPointError, OSError, ValueError) as error:
        if isinstance(error, lock.HeldError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(lock.HELD)
        sys.exit(f"error: {error}")
