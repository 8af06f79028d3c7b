"""Times a whole distillation step with the published eager loss and with that of rrd_kernels.

    python examples/cifar100/speed.py --model_t resnet32x4 --model_s resnet8x4

Images and weights are random; all rows have the same student, teacher and optimizer and take turns.
"loss ms" and "loss share" are what a row's step takes beyond the step without a relational loss in
the same round, in milliseconds and as a share of the row's step; both are medians over the rounds.
A step in a graph is compared with one in a graph.
"""

import argparse
import statistics
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

import graphed
import options as flags
from benchmarks.implementations.fifo import published_loss
from benchmarks.measuring.clocks import interleaved, spread, timer_of
from benchmarks.measuring.hardware import busy_cores
from engine import device_of, prepare
from models import ImageClassifier, make_model
from output import print_table, write_record
from rrd_kernels import RRDLoss

ALONE, EAGER, FUSED = "no relational loss", "published eager", "rrd_kernels"
IN_A_GRAPH = " in a graph"


class PublishedRRD(nn.Module):
    """The published FIFO loss with the copies, the host sync and the B×K matrices of its code.

    Args:
        criterion: whose projections, memory and temperatures are used; they are copied.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, criterion: RRDLoss) -> None:
        super().__init__()
        memory = criterion.memory
        self.embed_s, self.embed_t = deepcopy(memory.embed_s), deepcopy(memory.embed_t)
        self.tau_s, self.tau_t = criterion.tau_s, criterion.tau_t
        state = criterion.state_dict()
        self.register_buffer("queue", state["memory.queue"].clone())
        self.register_buffer("queue_ptr", state["memory.queue_ptr"].clone())

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        with torch.no_grad():
            z_t = self.embed_t(f_t)
        z_s = self.embed_s(f_s)
        return published_loss(z_s, z_t, self.queue, self.queue_ptr, self.tau_s, self.tau_t)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    group = parser.add_argument_group("step")
    flags.add_architecture(group, "--model_t", "teacher's architecture", "resnet32x4")
    flags.add_architecture(group, "--model_s", "student's architecture", "resnet8x4")
    group.add_argument(
        "--batch_size",
        default=64,
        type=flags.at_least(1),
        metavar="B",
        help="images per step, at least 1",
    )
    group.add_argument(
        "--nce_k",
        default=16384,
        type=flags.at_least(1),
        metavar="K",
        help="rows of the FIFO memory, a multiple of --batch_size",
    )
    flags.add_device(group)
    group.add_argument(
        "--amp",
        choices=("bf16", "fp16"),
        help="autocast to bfloat16 or float16, the published loss's matrices too; rrd_kernels "
        "multiplies in float32, as train_student.py does (default: no autocast)",
    )
    group.add_argument(
        "--graph",
        action="store_true",
        help="also the steps without a relational loss and with that of rrd_kernels as one CUDA "
        "graph, as train_student.py --graph trains; on one GPU, not with --amp fp16",
    )
    flags.add_seconds(group, 60.0)
    flags.add_output(group)
    options = parser.parse_args(arguments)
    if options.nce_k % options.batch_size:
        parser.error(
            f"--nce_k must be a multiple of --batch_size, {options.batch_size}, as the published "
            f"loss needs it; got {options.nce_k}"
        )
    return options


def make_step(
    options: argparse.Namespace,
    networks: tuple[ImageClassifier, ImageClassifier],
    criterion: nn.Module | None,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    graph: bool = False,
) -> Callable[[], Tensor]:
    """One step of SGD on a batch of images, labels and the samples' numbers; returns the loss. If
    ``graph``, it has been captured."""
    student, teacher = networks
    device = batch[0].device
    modules = nn.ModuleList([student] if criterion is None else [student, criterion])
    trained = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.amp)

    def step(images: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            with torch.no_grad():
                taught, _ = teacher(images, is_feat=True)
            features, logits = student(images, is_feat=True)
            loss = F.cross_entropy(logits.float(), labels)
            if criterion is not None:
                loss = loss + criterion(features[-1], taught[-1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    if not graph:
        return partial(step, *batch)
    whole = partial(graphed.GraphedStep(step, options.batch_size, optimizer, device), *batch)
    for _ in range(graphed.WARM_UP + 1):
        whole()
    return whole


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each kind of step in each round.

    Raises:
        RuntimeError: the two losses do not agree at their first step.
        ValueError: ``--graph`` cannot be had.
    """
    fixed = {"seed": 0, "deterministic": False, "accumulate": 1, "compile": False}
    device = prepare(argparse.Namespace(**vars(options), **fixed))
    student = make_model(options.model_s, 100).to(device).train()
    teacher = make_model(options.model_t, 100).to(device).eval().requires_grad_(False)
    criterion = RRDLoss(
        s_dim=student.feature_dim, t_dim=teacher.feature_dim, nce_k=options.nce_k, device=device
    )
    published = PublishedRRD(criterion).to(device)
    published.embed_t.requires_grad_(False)
    images = torch.randn(options.batch_size, 3, 32, 32, device=device)
    numbers = torch.arange(options.batch_size, device=device)
    batch = (images, torch.randint(100, (options.batch_size,), device=device), numbers)
    features = torch.randn(options.batch_size, student.feature_dim, device=device)
    taught = torch.randn(options.batch_size, teacher.feature_dim, device=device)
    difference = abs(criterion(features, taught) - published(features, taught)).item()
    if not difference < 1e-3:  # of two float32 losses near log K; a wrong one is off by far more
        raise RuntimeError(
            f"the losses of the published code and of rrd_kernels differ by {difference:.3g} at "
            f"their first step; at most 1e-3 is allowed"
        )
    networks = (student, teacher)
    steps = {
        ALONE: make_step(options, networks, None, batch),
        EAGER: make_step(options, networks, published, batch),
        FUSED: make_step(options, networks, criterion, batch),
    }
    if options.graph:
        for name, loss in ((ALONE, None), (FUSED, criterion)):
            steps[name + IN_A_GRAPH] = make_step(options, networks, loss, batch, graph=True)
    timers = {name: timer_of(step, device) for name, step in steps.items()}
    return interleaved(timers, options.seconds)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    busy = busy_cores()
    times = measure(options)
    table = Table(title=f"{options.model_t} → {options.model_s}, batch {options.batch_size}")
    for title in ("step", "median ms [p20–p80]", "images/s", "loss ms", "loss share"):
        table.add_column(title, justify="left" if title == "step" else "right")
    rows = []
    for name, found in times.items():
        seconds = spread(found)
        # Of one round: a machine that slows down slows both alike.
        alone = ALONE + IN_A_GRAPH if name.endswith(IN_A_GRAPH) else ALONE
        own = statistics.median(x - y for x, y in zip(found, times[alone], strict=True))
        share = statistics.median((x - y) / x for x, y in zip(found, times[alone], strict=True))
        images_per_second = options.batch_size / seconds["median"]
        rows.append(
            {
                "step": name,
                "seconds": seconds,
                "images_per_second": images_per_second,
                "loss_seconds": own,
                "loss_share": share,
            }
        )
        table.add_row(
            name,
            "{median:.4g} [{p20:.4g}–{p80:.4g}]".format(**{k: 1e3 * x for k, x in seconds.items()}),
            f"{images_per_second:.0f}",
            "–" if name == alone else f"{1e3 * own:.3g}",
            "–" if name == alone else f"{share:.1%}",
        )
    print_table(table)
    if (busy or 0) > 0.1:
        print(f"warning: other processes kept {busy:.1f} cores busy before the measurement")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    fields = {"settings": settings, "busy_cores": busy, "rows": rows}
    write_record(options.output, device_of(options), fields)


if __name__ == "__main__":
    flags.run_script(main)
