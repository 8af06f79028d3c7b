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

from benchmarks.cases.sizes import axes_for, cases_for
from benchmarks.implementations import implementations
from benchmarks.implementations.fifo import Fused
from benchmarks.measuring import growth, hardware
from benchmarks.measuring.breakdown import breakdown, host_time
from benchmarks.measuring.memory import NOT_MEASURED, OUT_OF_MEMORY, first_line
from benchmarks.measuring.run import Row, run_case
from benchmarks.report.record import Record, default_path, new_record, write_whole
from rrd_kernels.ops import EXTENSION_ERROR

STARTED = time.monotonic()
#: What is measured, in its order.
PARTS = ("cases", "host", "breakdown", "scaling")
#: Its name, and what returns the rows.
Part = tuple[str, Callable[[], Iterable[Row]]]
#: Steps that are profiled.
PROFILED = {"cpu": 5, "cuda": 20}
#: How growth may end: ours, or the reference's.
ENDS = ((growth.GROWTH, OUT_OF_MEMORY), (growth.GROWTH, NOT_MEASURED))
#: Cores that other work may keep busy without a warning.
NEGLIGIBLE_WORK = 0.1


def parse_arguments(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Time and memory of a training step: published eager code, torch.compile, "
        "SDPA, other libraries, rrd_kernels. Writes a JSON record, tables and pictures.",
        epilog="Terms and figures: README.md, 'Speed and memory on a CPU'.",
    )
    add, on_gpu = parser.add_argument, torch.cuda.is_available()
    default = "cuda" if on_gpu else "cpu"
    add("--device", choices=("cpu", "cuda"), default=default, help="default here: %(default)s")
    add("--parts", nargs="+", choices=PARTS, help="default: all; with --cases: cases")
    add("--cases", default="", metavar="TEXT", help="those whose name contains TEXT: momentum")
    add("--seconds", type=float, default=1.0, help="for a case, all together; default: 1")
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
    if chosen.device == "cuda" and not on_gpu:
        parser.error("--device cuda, but PyTorch sees no GPU")
    if EXTENSION_ERROR is not None:
        parser.error(f"{EXTENSION_ERROR}; make setup builds it")
    chosen.device = torch.device(chosen.device)
    chosen.parts = chosen.parts or (["cases"] if chosen.cases else PARTS)
    cases = cases_for(chosen.device, chosen.quick)
    wanted = chosen.cases.replace("x", "×")
    chosen.cases = [case for case in cases if wanted in case.name]
    if not chosen.cases:
        names = ", ".join(case.name for case in cases)
        parser.error(f"no case's name contains {wanted!r}; there are {names}")
    if chosen.quick:
        chosen.seconds = 0.0
    try:
        path = default_path(chosen.device, "quick-" if chosen.quick else "")
        chosen.output = new_record(chosen.output or path)
        if not chosen.record_only:
            from benchmarks.report import documents

            chosen.show = documents.show
    except ValueError as error:
        parser.error(f"--output: {error}")
    except ModuleNotFoundError as error:  # a machine with PyTorch and little else
        parser.error(f"{error}: give --record-only; benchmarks.report.documents shows it elsewhere")
    return chosen


def progress(text: str) -> None:
    """With the seconds since the start. Not a spinner, whose thread would take a core from what is
    being timed."""
    print(f"{time.monotonic() - STARTED:5.0f} s  {text}", file=sys.stderr, flush=True)


def parts_of(chosen: argparse.Namespace) -> Iterator[Part]:
    """What is measured one after another."""
    device, quick, seconds = chosen.device, chosen.quick, chosen.seconds
    kinds = {case: implementations(case, device, chosen.compile == "all") for case in chosen.cases}
    if "cases" in chosen.parts:
        for case in chosen.cases:
            yield case.name, partial(run_case, case, kinds[case], seconds, device)
    if "host" in chosen.parts:
        yield "the host's time", partial(host_time, device, 4 * seconds)
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


def measure(
    chosen: argparse.Namespace, parts: Iterable[Part], record: Record, save: Callable[[], None]
) -> None:
    """Adds one part after another to the record, and saves it after each. A part that fails is
    named, and the others go on."""
    for when in ("before", "after"):
        progress("torch.mm and a copy")
        machine = hardware.look_at_machine(chosen.cases, chosen.device, chosen.quick)
        if (machine["busy_cores"] or 0) > NEGLIGIBLE_WORK:
            progress(f"other work keeps {machine['busy_cores']:.1f} cores busy: times will be off")
        record["machine"][when] = machine
        for name, rows in parts if when == "before" else ():
            progress(name)
            try:
                record["rows"] += rows()
            except Exception as error:
                record["failures"].append(f"{name}: {first_line(error)}")
                traceback.print_exception(error)
            save()


def failures(record: Record) -> list[str]:
    """Where this package's kernels did not run or were wrong; memory may end the growth."""
    return record["failures"] + [
        f"{row['implementation']}, {row['figure']} of {row['case']}: {row['outcome']}, "
        f"{row['reason']}"
        for row in record["rows"]
        if row["implementation"].startswith(Fused.name)
        if "outcome" in row and (row["figure"], row["outcome"]) not in ENDS
    ]


def main(
    arguments: Sequence[str] | None = None,
    prog: str = "python -m benchmarks.report",
    parts: Callable[[argparse.Namespace], Iterable[Part]] = parts_of,
) -> int:
    """The command's exit code: 1 where something of this package failed."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parse_arguments(given, prog)
    record: Record = {"command": f"{prog} {shlex.join(given)}".strip()}
    record |= hardware.environment(chosen.device)
    record |= {"machine": {"before": None, "after": None}, "failures": [], "rows": []}

    def save() -> None:
        record["took"] = time.monotonic() - STARTED
        write_whole(chosen.output, record)

    save()  # what cannot be written is known before anything is measured
    try:
        measure(chosen, parts(chosen), record, save)
    finally:  # after an interrupt too
        save()
        print(f"written to {chosen.output}")
        if record["rows"] and not chosen.record_only:
            chosen.show(chosen.output)
    failed = failures(record)
    for failure in failed:
        progress(failure)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
