"""Distils a teacher into a small student, with and without RRD, on scikit-learn's digits.

    python examples/quickstart.py --help

The teacher is trained with the labels of all training images. The student gets five labels per
class, so that it needs a teacher. The distillation losses also use the other training images,
without their labels. Every method has the same number of steps and, for a given seed, the same
first weights, labelled images and batches.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

import digits
import report
from benchmarks.cases.sizes import Case
from benchmarks.implementations import implementations
from benchmarks.measuring.clocks import interleaved, timer_of
from benchmarks.measuring.run import run_case
from benchmarks.report.tables import frame, listing, markdown, print_markdown
from digits import Digits, Method, Network, Scores
from rrd_kernels.extension import why_not_fused

# loss = CE + a·KD + b·RRD, chosen with --validate, the test images unseen: of a = 0.3, 1, 3, 10 the
# best, though all lie within the spread over seeds; of b = 3, 10, 30, 100 the one beyond which
# neither protocol gains. That b is large is no wonder: the cross-entropy on so few labels soon
# vanishes.
KD_WEIGHT = 10.0
RRD_WEIGHT = 30.0

BENCHMARK = (
    Case(64, 16384, "float32"),
    Case(64, 16384, "bfloat16"),
    Case(256, 65536, "float32"),
)
CPU = torch.device("cpu")

PUBLISHED = "This is a tiny data set. Published CIFAR-100 results: see examples/cifar100/RESULTS.md"

#: Columns of output that is not a terminal.
WIDTH = 100


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains a teacher on scikit-learn's digits, then a small student alone, with "
        "Hinton KD and with RRD; prints their accuracies and draws a picture. Then times the fused "
        "loss against eager PyTorch.",
    )
    default = "(default: %(default)s)"
    for name, value, meaning in (
        ("seeds", 5, "students per method, at least 1; their seeds are 0 to N - 1"),
        ("steps", 1000, "training steps per student, at least 1"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{meaning} {default}"
        )
    for name, weight, letter in (("kd", KD_WEIGHT, "a"), ("rrd", RRD_WEIGHT, "b")):
        parser.add_argument(
            f"--{name}-weight",
            type=float,
            default=weight,
            metavar=letter.upper(),
            help=f"weight {letter} in the loss CE + a·KD + b·RRD, at least 0 {default}",
        )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="score on a quarter of the training images, held out, in place of the test images, to "
        "choose weights",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/quickstart.png"),
        metavar="PATH",
        help=f"picture, a .png, .pdf or .svg file; an existing file is replaced {default}",
    )
    parser.add_argument(
        "--no-benchmark", action="store_true", help="skip the benchmark, the last table"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only check that everything runs: sets 2 seeds and 50 steps, measures one benchmark "
        "case; the figures mean nothing",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps = 2, 50
    # Before minutes of training: a place that cannot be written to should fail at once.
    if arguments.output.suffix not in (".png", ".pdf", ".svg") or arguments.output.is_dir():
        parser.error(f"--output must be a .png, .pdf or .svg file; got {arguments.output}")
    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: {error}")
    for name in ("kd_weight", "rrd_weight"):
        if not 0 <= getattr(arguments, name) < float("inf"):
            option, value = name.replace("_", "-"), getattr(arguments, name)
            parser.error(f"--{option} must be finite and at least 0; got {value}")
    for name in ("seeds", "steps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(arguments, name)}")
    return arguments


@contextmanager
def one_thread() -> Iterator[None]:
    """For networks so small that a second thread is more waited for than working."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_all(
    arguments: argparse.Namespace, methods: list[Method], train: Digits, console: Console
) -> tuple[Network, dict[str, list[Network]]]:
    """The teacher, and each method's students, one for each seed."""
    students = defaultdict(list)
    with Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        steps = digits.TEACHER_STEPS + arguments.seeds * len(methods) * arguments.steps
        task = progress.add_task("teacher", total=steps)

        def on_step() -> None:
            progress.advance(task)

        teacher = digits.train_teacher(train, digits.TEACHER_STEPS, on_step)
        for seed in range(arguments.seeds):
            for method in methods:
                progress.update(task, description=f"seed {seed}: {method.name}")
                students[method.name].append(
                    digits.train_student(method, teacher, train, seed, arguments.steps, on_step)
                )
                if not console.is_terminal:
                    console.print(f"seed {seed}: {method.name} trained")
    return teacher, students


def loss_milliseconds(method: Method, teacher: Network, train: Digits) -> dict[str, float]:
    """Median time of the distillation loss of one batch by backend, those that it has."""
    if not method.distils:
        return {}
    student = digits.make_student(0)
    images = train.images[: digits.BATCH]
    answers = teacher(images)
    outputs = student(images)
    leaves = digits.Outputs(*(output.detach().requires_grad_() for output in outputs))

    def step(backend: str) -> Callable[[], object]:
        distillation = digits.Distillation(method, student, teacher, backend)
        return lambda: distillation(leaves, answers).backward()

    calls = {"eager": step("reference")}
    if method.rrd_weight and why_not_fused(CPU) is None:
        calls["fused"] = step("fused")
    timers = {name: timer_of(call, CPU) for name, call in calls.items()}
    times = interleaved(timers, seconds=0.5)
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def draw(
    path: Path,
    teacher: Network,
    students: dict[str, list[Network]],
    outcomes: dict[str, list[Scores]],
    test: Digits,
) -> None:
    """The picture; its similarities are those of the first seed."""
    networks = {
        "teacher": teacher,
        "untrained student": digits.make_student(0),
        "student alone": students["student alone"][0],
        "student with RRD 2025": students["RRD 2025"][0],
    }
    target = digits.similarities(teacher, test)
    structures: dict[str, tuple[Tensor, float]] = {}
    for name, network in networks.items():
        matrix = digits.similarities(network, test)
        structures[name] = matrix, digits.correlation(matrix, target)
    accuracy = digits.evaluate(teacher, teacher, test).accuracy
    report.draw(outcomes, accuracy, structures, test.labels.bincount().tolist(), path)


def benchmark(cases: Sequence[Case], seconds: float, console: Console) -> None:
    if why_not_fused(CPU) is not None:
        console.print("Benchmark skipped: the extension is not compiled; make setup compiles it.")
        return
    console.print(
        "\nBenchmark of one step: enqueue, loss and gradient. '× rrd_kernels' is the time relative "
        "to rrd_kernels, median over the rounds. make bench measures more cases."
    )
    rows = []
    for case in cases:
        print(f"measuring {case.name} ...", file=sys.stderr)
        kinds = implementations(case, CPU, compiled=False)  # compiling is slow
        rows += run_case(case, kinds, seconds, memory=False)
    steps = [row for row in rows if row["figure"] == "step"]
    print_markdown(markdown(listing(frame({"rows": steps, "machine": {}}))))


def main() -> None:
    started = time.perf_counter()
    arguments = parse_arguments()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    train, test = digits.load(arguments.validate)
    methods = digits.methods(arguments.kd_weight, arguments.rrd_weight)
    console.print(
        f"Data: {len(train.labels)} training images, {10 * digits.LABELS_PER_CLASS} of them with "
        f"labels for the student; scores are on {len(test.labels)} other images. From images "
        "without labels the student learns through the teacher only: with KD from its class "
        "probabilities, with RRD from the relations between images, which name no class."
    )
    with one_thread():
        teacher, students = train_all(arguments, methods, train, console)
        outcomes = {
            name: [digits.evaluate(student, teacher, test) for student in of_seeds]
            for name, of_seeds in students.items()
        }
        times = {method.name: loss_milliseconds(method, teacher, train) for method in methods}
    accuracy = digits.evaluate(teacher, teacher, test).accuracy
    console.print(
        f"Teacher, trained with all labels: {teacher.size} parameters, accuracy {accuracy:.1%}. "
        f"Student: {digits.make_student(0).size} parameters."
    )
    if arguments.quick:
        console.print("--quick: so few steps only show that everything runs; figures mean nothing.")
    console.print(report.table(outcomes, times), report.LEGEND)
    draw(arguments.output, teacher, students, outcomes, test)
    if not arguments.no_benchmark:
        cases, seconds = (BENCHMARK[:1], 0.5) if arguments.quick else (BENCHMARK, 5.0)
        benchmark(cases, seconds, console)
    if not arguments.quick:
        console.print(report.sentences(outcomes, "student alone", "Hinton KD"))
    taken = time.perf_counter() - started
    console.print(f"Picture: {arguments.output}. Total time: {taken:.0f} s.")
    console.print(PUBLISHED, soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
