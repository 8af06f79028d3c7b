"""Measures all of it, or parts: ``python -m benchmarks.report --help``."""

import argparse
import contextlib
import itertools
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import breakdown, hardware, host_time, markdown, pictures, record, scaling
from benchmarks.cases import AnyCase, Case, axes_for, cases_for
from benchmarks.figures import CPU_UNITS, CUDA_UNITS
from benchmarks.implementations import COMPILED
from benchmarks.measure import (
    NOT_MEASURED,
    OUT_OF_MEMORY,
    busy_cores,
    copy_rate,
    first_line,
    float32_matmul_precision,
    matmul_rate,
)
from benchmarks.paths import new_record
from benchmarks.peers import Fused
from benchmarks.plan import PARTS, Plan, plan_for
from benchmarks.record import Machine, Measured
from benchmarks.run import Absent, run_case
from benchmarks.step import Step
from benchmarks.targets import Outcome, beside_compile, outcomes, targets_for
from rrd_kernels.ops import EXTENSION_ERROR

STARTED = time.monotonic()
#: What the files beside a record end with, in place of its suffix.
BESIDE = (".md", *(pictures.file_name("", name) for name in pictures.TITLES))
#: Cores that other work may keep busy without a warning.
NEGLIGIBLE_WORK = 0.1

EXPLANATION = """\
A step is: enqueue the teacher's rows, mean loss, gradient with respect to the
student's embeddings (D = 128 where no other is named). Batches take turns, and
copies of a memory that would stay in the last cache. Of the momentum memory,
which --cases momentum selects, it is: loss over B×K drawn rows of so many,
gradient, update of both memories; and its negatives are drawn for one batch, on
the host, in one process. Each implementation must first agree with the float64
reference; then they take turns.

  ms, µs             of a step, by the host's clock: median [20th–80th percentile]
  µs in a graph      of a step in the replay of a CUDA graph, by the device's clock
  GFLOP/s, TFLOP/s   8·B·D·K operations, of the momentum memory 6·B·D·(K + 1),
                     counted alike for all implementations, in a graph where there
                     is one
  of its ceiling     the time that a large torch.mm needs for these operations, or
                     a large copy for the bytes that no implementation can spare,
                     whichever is longer and is named, over the time of the step;
                     both rates are measured in the same run
  × published, × compile, × SDPA
                     how many times faster than that peer by the host's clock,
                     median over the rounds; of several SDPA kernels the fastest
                     counts, the one with 1.00
  extra MiB          peak of one step above its inputs and the memory

The parts: the cases; scaling, over K and over B until memory runs out; host, the
microseconds of one step in Python, the dispatcher, autograd and kernels; and
breakdown, the operators or GPU kernels that steps consist of.
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Time and memory of a training step: published eager code, torch.compile, "
        "SDPA, rrd_kernels. Writes a JSON record, Markdown tables and pictures.",
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="which are run (default: all)")
    parser.add_argument(
        "--cases",
        default="",
        metavar="TEXT",
        help="only the cases whose name contains TEXT, such as bfloat16, momentum or 256x65536, "
        "and no other part (default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="how long to time each case, but seven rounds at least; on a GPU once without a graph "
        "and once in one (default: {cpu} on a CPU, {cuda} on a GPU)".format(
            **{name: plan_for(torch.device(name)).case_seconds for name in ("cpu", "cuda")}
        ),
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where the record goes, NAME.json, and beside it NAME.md and the pictures, "
        "NAME-*.png; where one of them exists, a number is added to NAME "
        "(default: benchmarks/results/<device>-<date>.json)",
    )
    parser.add_argument(
        "--compile",
        choices=("all", "targets", "none"),
        default="all",
        help="the cases in which torch.compile takes part, five to twenty seconds for each size: "
        "all, those that have a target beside it, or none (default: %(default)s)",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--record-only", action="store_true", help="write no Markdown and no pictures beside it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that all of it runs, nothing else"
    )
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU")
    if EXTENSION_ERROR is not None:
        parser.error(f"{EXTENSION_ERROR}; make setup builds it")
    chosen.device = torch.device(chosen.device)
    if chosen.seconds is not None and not chosen.seconds >= 0:
        parser.error(f"--seconds must not be negative; got {chosen.seconds}")
    wanted = chosen.cases.replace("x", "×")
    cases = cases_for(chosen.device, chosen.quick)
    parts = ["cases"] if wanted else PARTS
    chosen.parts = chosen.parts or parts
    if not set(chosen.parts) <= set(parts):
        parser.error(f"--cases runs the part cases alone; got --parts {' '.join(chosen.parts)}")
    chosen.cases = [case for case in cases if wanted in case.name]
    if not chosen.cases:
        names = ", ".join(case.name for case in cases)
        parser.error(f"no case's name contains {wanted!r}; there are {names}")
    default = record.default_path(chosen.device, chosen.quick)
    try:
        chosen.output = new_record(chosen.output or default, *BESIDE)
    except (OSError, ValueError) as error:
        parser.error(f"--output: {error}")
    return chosen


def report(progress: str) -> None:
    """With the seconds since the start."""
    # Not a spinner: its thread would take a core from what is being timed.
    print(f"{time.monotonic() - STARTED:5.0f} s  {progress}", file=sys.stderr, flush=True)


def look_at_machine(cases: Sequence[AnyCase], device: torch.device, plan: Plan) -> Machine:
    report("torch.mm and a copy")
    busy = busy_cores()
    if busy is not None and busy > NEGLIGIBLE_WORK:
        report(f"other work keeps {busy:.1f} cores busy: times will be off")
    rates = {}
    multiplying = {case.format: case for case in cases if isinstance(case, Case)}
    for case in multiplying.values():
        with float32_matmul_precision(case.matmul_precision):
            rates[case.format] = matmul_rate(
                case.dtype, device, plan.matmul_sizes, plan.ceiling_seconds
            )
    copied = copy_rate(device, plan.copy_bytes, plan.ceiling_seconds)
    # The state right after: that of a machine at work.
    state = hardware.cpu_state() if device.type == "cpu" else hardware.gpu_state(device)
    return Machine(rates, copied, busy, state)


def measure(
    chosen: argparse.Namespace, plan: Plan, measured: Measured, save: Callable[[], object]
) -> None:
    """Adds to ``measured`` one part after another, and saves it after each.

    A part that fails is named, and the others go on.
    """
    device: torch.device = chosen.device

    def without(case: AnyCase) -> tuple[type[Step], ...]:
        wanted = {"all": True, "none": False, "targets": case.name in beside_compile(device)}
        return () if wanted[chosen.compile] else COMPILED

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        report(name)
        try:
            yield
        except Exception as error:
            measured.failures.append(f"{name}: {first_line(error)}")
            traceback.print_exception(error)
        save()

    if "cases" in chosen.parts:
        for case in chosen.cases:
            with part(case.name):
                memory = not chosen.no_memory
                measured.results += run_case(case, plan.case_seconds, device, memory, without(case))
    if "host" in chosen.parts:
        with part("the host's time"):
            measured.host_time = host_time.profile(*plan.host_size, device, plan.host_seconds)
    if "breakdown" in chosen.parts:
        first: dict[type[Case], Case] = {}
        for case in chosen.cases:
            if isinstance(case, Case):
                first.setdefault(type(case), case)
        for case in first.values():
            with part(f"{case.name} by operator"):
                steps = plan.breakdown_steps
                measured.breakdowns += breakdown.breakdowns(case, device, steps, without(case))
    if "scaling" in chosen.parts:
        for axis in axes_for(device, chosen.quick):
            for kind in scaling.implementations_along(axis, device):
                with part(f"{kind.name}, {axis.name} from {axis.values[0]} to {axis.values[-1]}"):
                    series = scaling.run_series(kind, axis, device, plan.point_seconds)
                    measured.series.append(series)
    with part("the machine again"):
        measured.after = look_at_machine(chosen.cases, device, plan)


def show(
    measured: Measured,
    reached: Sequence[Outcome],
    device: torch.device,
    written: Mapping[str, Any],
) -> None:
    """On the terminal: the cases, then the further parts in Markdown."""
    units = CPU_UNITS if device.type == "cpu" else CUDA_UNITS
    try:
        from benchmarks import table
    except ModuleNotFoundError as error:  # a machine with PyTorch and little else
        report(f"all in Markdown: {error}")
        print(markdown.document(written))
        return
    sections = itertools.groupby(measured.results, key=lambda result: result.case.section)
    for section, of_section in sections:
        table.print_table(list(of_section), units, measured.ceilings, title=section)
    if reached:
        table.print_targets(reached)
    print(markdown.further_parts(written))


def write_beside(path: Path, written: Mapping[str, Any]) -> None:
    """The pictures, where matplotlib is installed, and the Markdown that shows them."""
    drawn: list[Path] = []
    try:
        drawn = pictures.draw_all(written, path.parent, path.stem)
    except ModuleNotFoundError as error:
        report(
            f"no pictures: {error}; where it is installed, python -m benchmarks.pictures "
            f"{path.name} draws them"
        )
    text = markdown.document(written, [picture.name for picture in drawn])
    path.with_suffix(".md").write_text(text)


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parse_arguments(given)
    device: torch.device = chosen.device
    plan = plan_for(device, chosen.quick, chosen.seconds)
    command = shlex.join(["python", "-m", "benchmarks.report", *given])
    environment = {"command": command} | record.environment(device)
    started = time.perf_counter()
    path: Path = chosen.output
    measured = Measured(look_at_machine(chosen.cases, device, plan))

    def save() -> list[Outcome]:
        reached = outcomes(measured.results, measured.ceilings.mm_rate, targets_for(device))
        environment["took"] = time.perf_counter() - started  # seconds
        record.write(path, environment, measured, reached)
        return reached

    try:
        measure(chosen, plan, measured, save)
    finally:  # after an interrupt too
        reached = save()
        written = record.load(path)
        show(measured, reached, device, written)
        print(f"written to {path}", end="")
        if not chosen.record_only:
            write_beside(path, written)
            print(f", its tables and pictures to {path.with_suffix('.md')}", end="")
        print()
    failed = failures(measured)
    for failure in failed:
        report(failure)
    return 1 if failed else 0


def failures(measured: Measured) -> list[str]:
    """Where this package's kernels did not run or were wrong; memory may end the growth, theirs or
    the reference's."""
    may_end = (None, OUT_OF_MEMORY, NOT_MEASURED)
    found = [*measured.failures]
    found += [
        f"{result.case.name}: {result.outcome}, {result.reason}"
        for result in measured.results
        if isinstance(result, Absent) and result.implementation == Fused.name
    ]
    for series in measured.series:
        last = series.points[-1]
        if series.implementation == Fused.name and last.outcome not in may_end:
            found.append(f"{series.axis.name} = {last.value}: {last.outcome}, {last.reason}")
    return found


if __name__ == "__main__":
    sys.exit(main())
