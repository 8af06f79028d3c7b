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

from models import model_dict

#: Learning rates that the published scripts start these students with; others start with 0.05.
SMALL_LEARNING_RATE = {"MobileNetV2": 0.01, "ShuffleV1": 0.01, "ShuffleV2": 0.01}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults are shown where there are any, names and meanings side by side."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False
        return action.help if plain else super()._get_help_string(action)


class _Ignored(argparse.Action):
    """Of the published scripts, and of no use here: old command lines go on working."""

    def __call__(self, *_: Any) -> None:
        pass


def _epochs(text: str) -> tuple[int, ...]:
    """'150,180,210' as published."""
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"epochs separated by commas, not {text!r}") from None


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """An argument's type: a number that is not below ``least``."""

    def parse(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"at least {least}, not {text}")
        return value

    parse.__name__ = "number"
    return parse


def parser_of(description: str | None) -> argparse.ArgumentParser:
    architectures = f"architectures: {', '.join(model_dict)}"
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
    group.add_argument("--dataset", default="digits", choices=datasets, help="digits needs no file")
    group.add_argument("--data_folder", default="data", type=Path, help="where data sets lie")
    group.add_argument(
        "--images", type=at_least(1), help="of training and of test, no more than so many"
    )
    group.add_argument("--batch_size", default=64, type=at_least(1), help="images of a step")
    group.add_argument(
        "--loader",
        default="device",
        choices=("device", "workers"),
        help="images on the device, augmented there, or in PIL by worker processes",
    )
    group.add_argument(
        "--drop_last",
        action="store_true",
        help="leave a smaller last batch out, as the published code of 2025 does",
    )
    group.add_argument("--num_workers", default=8, type=at_least(0), help="processes that load")


def add_optimization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--epochs", default=240, type=at_least(1), help="passes over the images")
    group.add_argument(
        "--learning_rate",
        type=at_least(0, float),
        help="of SGD (default: 0.05, and 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2)",
    )
    group.add_argument(
        "--lr_decay_epochs", default="150,180,210", type=_epochs, help="when the rate is lowered"
    )
    group.add_argument("--lr_decay_rate", default=0.1, type=float, help="by this factor")
    group.add_argument("--weight_decay", default=5e-4, type=float, help="of SGD")
    group.add_argument("--momentum", default=0.9, type=float, help="of SGD")
    group.add_argument(
        "--accumulate", default=1, type=at_least(1), help="batches whose gradients make one step"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--trial", "-t", default="0", help="names the run; --seed makes it another")
    group.add_argument("--seed", default=0, type=int, help="of weights, order and augmentation")
    group.add_argument(
        "--save_freq", default=40, type=at_least(1), help="keeps ckpt_epoch_N.pth every N epochs"
    )
    for unused in ("--print_freq", "--tb_freq", "--init_epochs", "--hint_layer"):
        group.add_argument(
            unused, action=_Ignored, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    group.add_argument("--save_folder", default="save", type=Path, help="where runs are kept")
    group.add_argument(
        "--resume", action="store_true", help="go on from the run's last checkpoint, if it has one"
    )
    group.add_argument(
        "--save_steps",
        default=0,
        type=at_least(0),
        help="a checkpoint also every so many steps; 0: at the end of each epoch only",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    group.add_argument("--amp", choices=("bf16", "fp16"), help="mixed precision")
    group.add_argument("--channels_last", action="store_true", help="that memory format")
    group.add_argument("--compile", action="store_true", help="torch.compile the student")
    group.add_argument(
        "--deterministic", action="store_true", help="the same bits from run to run, also on a GPU"
    )
    group.add_argument("--quiet", action="store_true", help="a line an epoch, no progress bar")


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
            f"--resume goes on with the settings of the run: {'; '.join(changed)}. Another --trial "
            f"starts a run of its own"
        )


def write_settings(options: argparse.Namespace, path: Path) -> None:
    """The resolved settings as JSON beside the run."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(plain_settings(options), indent=2) + "\n")
    temporary.replace(path)


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
    except (FileExistsError, FileNotFoundError, FloatingPointError, ValueError) as error:
        sys.exit(f"error: {error}")
