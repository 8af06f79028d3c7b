"""Times the loaders alone: training batches, ready on the device.

    python examples/cifar100/loader_speed.py --workers 0 8

The images are random, of CIFAR's size. The loaders take turns; a turn is one epoch, in which worker
processes start anew.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table

import options as flags
from benchmarks.measuring.clocks import interleaved, spread, timer_of
from benchmarks.measuring.hardware import busy_cores
from engine import device_of
from images.data import ImageSet
from images.loaders import DeviceLoader, TrainLoader, WorkerLoader
from output import print_table, write_record


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    parser.epilog = None  # no option takes an architecture
    parser.add_argument(
        "--images",
        default=10000,
        type=flags.at_least(1),
        metavar="N",
        help="images per epoch, at least 1",
    )
    parser.add_argument(
        "--batch_size",
        default=64,
        type=flags.at_least(1),
        metavar="B",
        help="images per batch, at least 1",
    )
    parser.add_argument(
        "--workers",
        default=[0, 8],
        nargs="*",
        type=flags.at_least(0),
        metavar="N",
        help="a PIL loader for each N, with N worker processes; 0 loads in this process (default: "
        "0 8)",
    )
    flags.add_device(parser)
    flags.add_seconds(parser, 30.0)
    flags.add_output(parser)
    return parser.parse_args(arguments)


def random_set(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    drawn: Any = {"generator": generator, "device": "cpu"}
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, **drawn)
    half = (0.5, 0.5, 0.5)
    labels = torch.randint(100, (count,), **drawn)
    return ImageSet(images, labels, tuple(map(str, range(100))), half, half)


def an_epoch(loader: TrainLoader) -> Callable[[], None]:
    def run() -> None:
        for _batch in loader.epoch(0):
            pass

    return run


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    device = device_of(options)
    busy = busy_cores()
    images = random_set(options.images)
    loaders: dict[str, TrainLoader] = {
        "device": DeviceLoader(images, options.batch_size, device=device)
    }
    for workers in options.workers:
        loader = WorkerLoader(images, options.batch_size, device=device, workers=workers)
        loaders[f"PIL, {workers} workers" if workers else "PIL in this process"] = loader
    epochs = {name: an_epoch(loader) for name, loader in loaders.items()}
    epochs["device"]()  # the set goes to the device once
    timers = {name: timer_of(epoch, device) for name, epoch in epochs.items()}
    times = interleaved(timers, options.seconds, min_rounds=3)

    table = Table(title=f"{options.images} images in batches of {options.batch_size}, on {device}")
    for title in ("loader", "median ms per batch [p20–p80]", "images/s"):
        table.add_column(title, justify="left" if title == "loader" else "right")
    rows = []
    for name, found in times.items():
        seconds = spread([taken / len(loaders[name]) for taken in found])
        rate = options.images / (seconds["median"] * len(loaders[name]))
        milliseconds = [f"{1e3 * x:.2f}" for x in seconds.values()]
        table.add_row(name, "{} [{}–{}]".format(*milliseconds), f"{rate:.0f}")
        rows.append({"loader": name, "seconds": seconds, "images_per_second": rate})
    print_table(table)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    fields = {"settings": settings, "busy_cores": busy, "rows": rows}
    write_record(options.output, device, fields)


if __name__ == "__main__":
    flags.run_script(main)
