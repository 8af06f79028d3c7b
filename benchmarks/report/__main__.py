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

from benchmarks.cases.sizes import AXES, BUSY_CASES, CASES, CRD, FAMILY, Case
from benchmarks.implementations import implementations
from benchmarks.implementations.step import Step
from benchmarks.measuring import growth, hardware
from benchmarks.measuring.breakdown import breakdown, host_time
from benchmarks.measuring.memory import NOT_MEASURED, OUT_OF_MEMORY, first_line
from benchmarks.measuring.run import GROWTH, OURS, Row, beside_busy, run_case
from benchmarks.report.record import Record, default_path, new_record, write_whole
from benchmarks.report.targets import BESIDE_COMPILE
from rrd_kernels.extension import EXTENSION_ERROR

STARTED = time.monotonic()
PARTS = ("cases", "family", "crd", "host", "breakdown", "busy", "growth")
PARTS_HELP = (
    "cases: time and memory of each case; family: the steps of other methods that compare with a "
    "queue, on a CPU only; crd: those of CRD, on a CPU only; host: the host's time by layer; "
    "breakdown: a step by operator or kernel; busy: beside busy processes, on a CPU only; growth: "
    "with K and with B"
)
Part = tuple[str, Callable[[], Iterable[Row]]]  # its name, and what returns the rows
ENDS = (OUT_OF_MEMORY, NOT_MEASURED)  # of the growth, ours or the reference's


def parse_arguments(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    text = (
        "Measures the time and memory of a step and writes a JSON record, tables and pictures. "
        "docs/benchmarks.md explains the terms. Exit code: 1 if something of rrd_kernels failed or "
        "disagreed with the reference, else 0."
    )
    parser = argparse.ArgumentParser(prog, description=text)
    add, on_gpu = parser.add_argument, torch.cuda.is_available()
    text = "device to measure on (default: cuda if PyTorch sees a GPU, else cpu)"
    add("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu", help=text)
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        help=f"{PARTS_HELP} (default: all; with --cases: cases, family, crd)",
    )
    text = "only the cases whose name contains TEXT, such as momentum or 64x16384 (default: all)"
    add("--cases", default="", metavar="TEXT", help=text)
    text = "seconds of timing per case, all implementations together; at least seven rounds, after "
    text += "20 s at least three (default: 1)"
    add("--seconds", type=float, default=1.0, metavar="S", help=text)
    text = (
        "file of the record; tables and pictures go beside it; if it exists, a number is added to "
    )
    text += "the name (default: benchmarks/results/<device>-<date>.json)"
    add("--output", type=Path, metavar="NAME.json", help=text)
    text = "the cases in which torch.compile takes part: all; targets, the GPU's cases that have a "
    text += "target relative to it; none (default: all)"
    add("--compile", choices=("all", "targets", "none"), default="all", help=text)
    text = "write the record without tables and pictures, which need pandas, matplotlib and rich; "
    text += "python -m benchmarks.report.documents NAME.json makes them later"
    add("--record-only", action="store_true", help=text)
    text = "tiny sizes and seven rounds per case: only checks that everything runs"
    add("--quick", action="store_true", help=text)
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not on_gpu:
        parser.error("--device cuda needs a GPU, and PyTorch sees none; give --device cpu")
    if EXTENSION_ERROR is not None:
        parser.error(f"{EXTENSION_ERROR}; make setup builds it")
    chosen.device = torch.device(chosen.device)
    chosen.parts = chosen.parts or (PARTS[:3] if chosen.cases else PARTS)
    chosen.seconds *= not chosen.quick
    sizes = "quick" if chosen.quick else chosen.device.type
    wanted = chosen.cases.replace("x", "×")
    every = (CASES[sizes], FAMILY[sizes], CRD[sizes])
    chosen.cases, chosen.family, chosen.crd = (
        [case for case in cases if wanted in case.name] for cases in every
    )
    if not chosen.cases + chosen.family + chosen.crd:
        known = ", ".join(case.name for cases in every for case in cases)
        parser.error(f"--cases: no case's name contains {wanted!r}; the cases are {known}")
    try:
        path = default_path(chosen.device, "quick-" if chosen.quick else "")
        chosen.output = new_record(chosen.output or path)
        if not chosen.record_only:
            from benchmarks.report import documents

            chosen.show = documents.show
    except ValueError as error:
        parser.error(f"--output: {error}")
    except ModuleNotFoundError as error:  # a machine with PyTorch and little else
        text = "give --record-only, and benchmarks.report.documents shows the record elsewhere"
        parser.error(f"tables and pictures cannot be made here: {error}; {text}")
    return chosen


def progress(text: str) -> None:
    # Not a spinner, whose thread would take a core from what is being timed.
    print(f"{time.monotonic() - STARTED:5.0f} s  {text}", file=sys.stderr, flush=True)


def parts_of(chosen: argparse.Namespace) -> Iterator[Part]:
    """What is measured one after another."""
    device, quick, seconds = chosen.device, chosen.quick, chosen.seconds
    parts = {"cases": chosen.cases}
    if device.type == "cpu":
        parts |= {"family": chosen.family, "crd": chosen.crd}

    def kinds_of(case: Case) -> list[type[Step]]:
        of_targets = device.type == "cuda" and case.name in BESIDE_COMPILE
        compiled = {"all": True, "targets": of_targets, "none": False}[chosen.compile]
        return implementations(case, device, compiled)

    for part in filter(chosen.parts.__contains__, parts):
        for case in parts[part]:
            yield case.name, partial(run_case, case, kinds_of(case), seconds, device)
    if "host" in chosen.parts:
        yield "the host's time", partial(host_time, device, 0.0 if quick else 4.0)
    if "breakdown" in chosen.parts:
        steps = 1 if quick else {"cpu": 5, "cuda": 20}[device.type]
        for _, of_memory in groupby(chosen.cases, lambda case: case.section):
            case = next(of_memory)
            rows = partial(breakdown, case, kinds_of(case), device, steps)
            yield f"{case.name} by operator", rows
    if "busy" in chosen.parts and device.type == "cpu":
        for case in chosen.cases if quick else BUSY_CASES:
            rows = partial(beside_busy, case, implementations(case, device, False), seconds)
            yield f"{case.name} beside busy processes", rows
    if "growth" in chosen.parts:
        for axis, cases in AXES["quick" if quick else device.type].items():
            for kind in filter(lambda kind: kind.grows, implementations(cases[0], device)):
                rows = partial(growth.rows_along, axis, cases, kind, device)
                yield f"{kind.name} against {axis}", rows


def failures(record: Record) -> list[str]:
    """Where this package's kernels did not run or were wrong; memory may end the growth."""
    return record["failures"] + [
        "{implementation}, {figure} of {case}: {outcome}, {reason}".format_map(row)
        for row in record["rows"]
        if row["implementation"].startswith(OURS) and "outcome" in row
        if row["figure"] != GROWTH or row["outcome"] not in ENDS
    ]


def main(
    arguments: Sequence[str] | None = None,
    prog: str = "python -m benchmarks.report",
    parts: Callable[[argparse.Namespace], Iterable[Part]] = parts_of,
) -> int:
    """Adds one part after another to a record, and saves it after each; one that fails is named,
    and the others go on. The exit code is 1 where something of this package failed."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parse_arguments(given, prog)
    record: Record = {"command": f"{prog} {shlex.join(given)}".strip()}
    record |= hardware.environment(chosen.device)
    record |= {"machine": {"before": None, "after": None}, "failures": [], "rows": []}

    def save() -> None:
        record["took"] = time.monotonic() - STARTED
        write_whole(chosen.output, record)

    def look(when: str) -> None:
        progress("rates of torch.mm and of a copy")
        cases = [*chosen.cases, *chosen.family, *chosen.crd]
        found = hardware.look_at_machine(cases, chosen.device, chosen.quick)
        if (found["busy_cores"] or 0) > 0.1:
            busy = found["busy_cores"]
            progress(f"warning: other processes keep {busy:.1f} cores busy; times will be too long")
        record["machine"][when] = found

    save()  # what cannot be written is known before anything is measured
    try:
        look("before")
        for name, rows in parts(chosen):
            progress(name)
            try:
                record["rows"] += rows()
            except Exception as error:
                record["failures"].append(f"{name}: {first_line(error)}")
                traceback.print_exception(error)
            save()
        look("after")
    finally:  # after an interrupt too
        save()
        print(f"record written to {chosen.output}")
        if record["rows"] and not chosen.record_only:
            chosen.show(chosen.output)
    failed = failures(record)
    for failure in failed:
        progress(f"FAILED {failure}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
