"""Measures all of it, or parts: ``python -m benchmarks.report --help``."""

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.cases.sizes import Case, axes_for, cases_for
from benchmarks.implementations import implementations, variants
from benchmarks.implementations.fifo import Fused
from benchmarks.measuring import growth, host_time
from benchmarks.measuring.breakdown import breakdown
from benchmarks.measuring.ceilings import look_at_machine
from benchmarks.measuring.outcomes import NOT_MEASURED, OUT_OF_MEMORY, first_line
from benchmarks.measuring.run import Row, run_case
from benchmarks.report.record import Record, default_path, environment, new_record, write_whole
from rrd_kernels.ops import EXTENSION_ERROR

STARTED = time.monotonic()
#: What is measured, in its order; the sweep only if it is named.
PARTS = ("cases", "host", "breakdown", "scaling", "sweep")
HOST_SECONDS = 4.0
#: What figures of the sweep begin with.
VARIANT = "variant's "
#: Steps that are profiled.
PROFILED = {"cpu": 5, "cuda": 20}
#: How growth may end: ours, or the reference's.
ENDS = ((growth.GROWTH, OUT_OF_MEMORY), (growth.GROWTH, NOT_MEASURED))
#: Cores that other work may keep busy without a warning.
NEGLIGIBLE_WORK = 0.1


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Time and memory of a training step: published eager code, torch.compile, "
        "SDPA, other libraries, rrd_kernels. Writes a JSON record, tables and pictures.",
        epilog="Terms and figures: README.md, 'Speed and memory on a CPU'.",
    )
    add = parser.add_argument
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=default, help="default here: %(default)s")
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        help="default: all but sweep, which times other plans than the table's for the kernels of "
        "a GPU of compute capability 9.0; with --cases: cases",
    )
    add("--cases", default="", metavar="TEXT", help="those whose name contains TEXT: momentum")
    add("--seconds", type=float, help="for a case, all together (default: 1)")
    add(
        "--output",
        type=Path,
        metavar="NAME.json",
        help="the record; NAME.md and NAME-*.png go beside it; where it exists, a number is added "
        "(default: benchmarks/results/<device>-<date>.json)",
    )
    add("--compile", choices=("all", "none"), default="all", help="whether it takes part")
    add("--record-only", action="store_true", help="no tables and no pictures")
    add("--quick", action="store_true", help="tiny sizes: shows that all runs, nothing else")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU")
    if EXTENSION_ERROR is not None:
        parser.error(f"{EXTENSION_ERROR}; make setup builds it")
    chosen.parts = chosen.parts or (["cases"] if chosen.cases else PARTS[:-1])
    on_gpu = chosen.device == "cuda"
    if "sweep" in chosen.parts and not (on_gpu and torch.cuda.get_device_capability() == (9, 0)):
        parser.error("the sweep's plans are for GPUs of compute capability 9.0, such as an H200")
    chosen.device = torch.device(chosen.device)
    if chosen.seconds is None:
        chosen.seconds = 0.0 if chosen.quick else 1.0
    cases = cases_for(chosen.device, chosen.quick)
    wanted = chosen.cases.replace("x", "×")
    chosen.cases = [case for case in cases if wanted in case.name]
    if not chosen.cases:
        names = ", ".join(case.name for case in cases)
        parser.error(f"no case's name contains {wanted!r}; there are {names}")
    try:
        chosen.output = new_record(chosen.output or default_path(chosen.device, chosen.quick))
        if not chosen.record_only:
            from benchmarks.report import documents

            chosen.show = documents.show
    except ValueError as error:
        parser.error(f"--output: {error}")
    except ModuleNotFoundError as error:  # a machine with PyTorch and little else
        parser.error(f"{error}: give --record-only; benchmarks.report.documents shows it elsewhere")
    return chosen


def report(progress: str) -> None:
    """With the seconds since the start."""
    # Not a spinner: its thread would take a core from what is being timed.
    print(f"{time.monotonic() - STARTED:5.0f} s  {progress}", file=sys.stderr, flush=True)


def parts(chosen: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterable[Row]]]]:
    """What is measured one after another: a name, and what returns the rows."""
    device, quick = chosen.device, chosen.quick
    kinds = {case: implementations(case, device, chosen.compile == "all") for case in chosen.cases}
    if "cases" in chosen.parts:
        for case in chosen.cases:
            yield case.name, partial(run_case, case, kinds[case], chosen.seconds, device)
    if "host" in chosen.parts:
        yield "the host's time", partial(host_time.profile, device, 0.0 if quick else HOST_SECONDS)
    if "breakdown" in chosen.parts:
        steps = 1 if quick else PROFILED[device.type]
        for _, of_memory in groupby(chosen.cases, lambda case: case.section):
            case = next(of_memory)
            yield f"{case.name} by operator", partial(breakdown, case, kinds[case], device, steps)
    if "scaling" in chosen.parts:
        for axis, cases in axes_for(device, quick).items():
            for kind in growth.implementations_along(cases[0], device):
                name = f"{kind.name} against {axis}"
                yield name, partial(growth.rows_along, axis, cases, kind, device)
    if "sweep" in chosen.parts:
        for case in filter(variants.takes, chosen.cases):
            yield f"variants of {case.name}", partial(swept, case, chosen.seconds, device)


def swept(case: Case, seconds: float, device: torch.device) -> Iterator[Row]:
    """Rows of plans beside the table's, to which the ratios are."""
    kinds = variants.implementations(case, device)
    for row in run_case(case, kinds, seconds, device, memory=False, ours=variants.TABLE):
        yield row | {"figure": VARIANT + row["figure"]}


def measure(chosen: argparse.Namespace, record: Record, save: Callable[[], None]) -> None:
    """Adds one part after another to the record, and saves it after each.

    A part that fails is named, and the others go on.
    """
    for when in ("before", "after"):
        report("torch.mm and a copy")
        machine = look_at_machine(chosen.cases, chosen.device, chosen.quick)
        if (machine["busy_cores"] or 0) > NEGLIGIBLE_WORK:
            report(f"other work keeps {machine['busy_cores']:.1f} cores busy: times will be off")
        record["machine"][when] = machine
        for name, rows in parts(chosen) if when == "before" else ():
            report(name)
            try:
                record["rows"] += rows()
            except Exception as error:
                record["failures"].append(f"{name}: {first_line(error)}")
                traceback.print_exception(error)
            save()


def failures(record: Record) -> list[str]:
    """Where this package's kernels did not run or were wrong; memory may end the growth."""
    return record["failures"] + [
        f"{row['figure']} of {row['case']}: {row['outcome']}, {row['reason']}"
        for row in record["rows"]
        if row["implementation"] == Fused.name or row["figure"].startswith(VARIANT)
        if "outcome" in row and (row["figure"], row["outcome"]) not in ENDS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parse_arguments(given)
    command = shlex.join(["python", "-m", "benchmarks.report", *given])
    record: Record = {"command": command, **environment(chosen.device)}
    record |= {"machine": {"before": None, "after": None}, "failures": [], "rows": []}

    def save() -> None:
        record["took"] = time.monotonic() - STARTED
        write_whole(chosen.output, record)

    save()  # what cannot be written is known before anything is measured
    try:
        measure(chosen, record, save)
    finally:  # after an interrupt too
        save()
        print(f"written to {chosen.output}")
        if record["rows"] and not chosen.record_only:
            chosen.show(chosen.output)
    failed = failures(record)
    for failure in failed:
        report(failure)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
