"""Measures all of it, or parts: ``python -m benchmarks.report --help``."""

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.cases.sizes import Case, axes_for, cases_for
from benchmarks.implementations import COMPILED
from benchmarks.implementations.fifo import Fused
from benchmarks.implementations.step import Step
from benchmarks.measuring import growth, host_time
from benchmarks.measuring.breakdown import breakdown
from benchmarks.measuring.ceilings import look_at_machine
from benchmarks.measuring.outcomes import NOT_MEASURED, OUT_OF_MEMORY, first_line
from benchmarks.measuring.run import Row, run_case
from benchmarks.report.record import Record, default_path, environment, new_record, write_whole
from benchmarks.report.targets import beside_compile, targets_lines
from rrd_kernels.ops import EXTENSION_ERROR

STARTED = time.monotonic()
#: What a report consists of, in its order.
PARTS = ("cases", "host", "breakdown", "scaling")
#: For each case, all implementations together.
SECONDS = {"cpu": 1.0, "cuda": 1.0}
HOST_SECONDS = 4.0
#: Steps that are profiled.
PROFILED = {"cpu": 5, "cuda": 20}
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
  in a graph         of a step in the replay of a CUDA graph, by the device's clock
  GFLOP/s            8·B·D·K operations, of the momentum memory 6·B·D·(K + 1),
                     counted alike for all implementations
  of its ceiling     the time that a large torch.mm needs for these operations, or
                     a large copy for the bytes that no implementation can spare,
                     whichever is longer and is named, over the time of the step;
                     both rates are measured in the same run
  × PEER, × ours     how many times as long as rrd_kernels the peer takes, median
                     over the rounds; of several SDPA kernels the fastest counts
  extra MiB          peak of one step above its inputs and the memory

The parts: the cases; scaling, over K and over B until memory runs out; host, the
microseconds of one step in Python, the dispatcher, autograd and kernels; and
breakdown, the operators or GPU kernels that steps consist of.
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Time and memory of a training step: published eager code, torch.compile, "
        "SDPA, other libraries, rrd_kernels. Writes a JSON record, tables and pictures.",
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
        metavar="TEXT",
        help="only the cases whose name contains TEXT, such as bfloat16, momentum or 256x65536, "
        "and no other part (default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="how long to time each case, but seven rounds, or three where they take long; on a "
        f"GPU once without a graph and once in one (default: {SECONDS['cpu']} on a CPU, "
        f"{SECONDS['cuda']} on a GPU)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where the record goes, NAME.json, and beside it NAME.md and the pictures, "
        "NAME-*.png; where it exists, a number is added to NAME "
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
    parser.add_argument("--record-only", action="store_true", help="no tables and no pictures")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that all of it runs, nothing else"
    )
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU")
    if EXTENSION_ERROR is not None:
        parser.error(f"{EXTENSION_ERROR}; make setup builds it")
    chosen.device = torch.device(chosen.device)
    if chosen.seconds is None:
        chosen.seconds = 0.0 if chosen.quick else SECONDS[chosen.device.type]
    wanted = (chosen.cases or "").replace("x", "×")
    chosen.parts = chosen.parts or (["cases"] if wanted else PARTS)
    cases = cases_for(chosen.device, chosen.quick)
    chosen.cases = [case for case in cases if wanted in case.name]
    if not chosen.cases:
        names = ", ".join(case.name for case in cases)
        parser.error(f"no case's name contains {wanted!r}; there are {names}")
    try:
        default = default_path(chosen.device, chosen.quick)
        chosen.output = new_record(chosen.output or default)
    except (OSError, ValueError) as error:
        parser.error(f"--output: {error}")
    return chosen


def report(progress: str) -> None:
    """With the seconds since the start."""
    # Not a spinner: its thread would take a core from what is being timed.
    print(f"{time.monotonic() - STARTED:5.0f} s  {progress}", file=sys.stderr, flush=True)


def measure(chosen: argparse.Namespace, record: Record, save: Callable[[], None]) -> None:
    """Adds one part after another to the record, and saves it after each.

    A part that fails is named, and the others go on.
    """
    device: torch.device = chosen.device

    def add(name: str, rows: Callable[..., Iterable[Row]], *arguments: object) -> None:
        report(name)
        try:
            record["rows"] += rows(*arguments)
        except Exception as error:
            record["failures"].append(f"{name}: {first_line(error)}")
            traceback.print_exception(error)
        save()

    def look(when: str) -> list[Row]:
        found = look_at_machine(chosen.cases, device, chosen.quick)
        record["machine"][when] = found
        if (found["busy_cores"] or 0) > NEGLIGIBLE_WORK:
            report(f"other work keeps {found['busy_cores']:.1f} cores busy: times will be off")
        return []

    def without(case: Case) -> Collection[type[Step]]:
        wanted = {"all": True, "none": False, "targets": case.name in beside_compile(device)}
        return () if wanted[chosen.compile] else COMPILED

    add("torch.mm and a copy", look, "before")
    if "cases" in chosen.parts:
        memory = not chosen.no_memory
        for case in chosen.cases:
            add(case.name, run_case, case, chosen.seconds, device, memory, without(case))
    if "host" in chosen.parts:
        seconds = 0.0 if chosen.quick else HOST_SECONDS
        add("the host's time", host_time.profile, device, seconds, chosen.quick)
    if "breakdown" in chosen.parts:
        steps = 1 if chosen.quick else PROFILED[device.type]
        for section in dict.fromkeys(case.section for case in chosen.cases):
            case = next(case for case in chosen.cases if case.section == section)
            add(f"{case.name} by operator", breakdown, case, device, steps, without(case))
    if "scaling" in chosen.parts:
        for axis in axes_for(device, chosen.quick):
            for kind in growth.implementations_along(axis, device):
                add(f"{kind.name} against {axis.label}", growth.rows_along, axis, kind, device)
    add("the machine again", look, "after")


def show(record: Record, path: Path) -> None:
    """Tables on the terminal; they and the pictures beside the record."""
    try:
        from benchmarks.report import pictures, tables
    except ModuleNotFoundError as error:  # a machine with PyTorch and little else
        report(f"{error}; elsewhere python -m benchmarks.report.tables {path.name} shows it")
        return
    tables.print_all(record)
    if reached := targets_lines(record):
        tables.print_table(reached, "Targets")
    drawn = pictures.draw_all(record, path.parent, path.stem)
    shown = "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in drawn)
    path.with_suffix(".md").write_text(tables.document(record) + shown)
    print(f"tables and pictures in {path.with_suffix('.md')}")


def failures(record: Record) -> list[str]:
    """Where this package's kernels did not run or were wrong; memory may end the growth, theirs or
    the reference's."""
    return record["failures"] + [
        f"{row['figure']} of {row['case']}: {row['outcome']}, {row['reason']}"
        for row in record["rows"]
        if row["implementation"] == Fused.name
        and "outcome" in row
        and not (row["figure"] == growth.GROWTH and row["outcome"] in (OUT_OF_MEMORY, NOT_MEASURED))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parse_arguments(given)
    path: Path = chosen.output
    started = time.perf_counter()
    command = shlex.join(["python", "-m", "benchmarks.report", *given])
    record: Record = {"command": command, **environment(chosen.device)}
    record |= {"machine": {"before": None, "after": None}, "failures": [], "rows": []}

    def save() -> None:
        record["took"] = time.perf_counter() - started
        write_whole(path, record)

    try:
        measure(chosen, record, save)
    finally:  # after an interrupt too
        save()
        print(f"written to {path}")
        if record["rows"] and not chosen.record_only:
            show(record, path)
    failed = failures(record)
    for failure in failed:
        report(failure)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
