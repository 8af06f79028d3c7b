"""Every kernel on a GPU against the float64 reference, and against itself: python
tests/gpu_correctness.py --help.

Each case of gpu_cases.py is repeated on fresh data. Its error is ‖fused - exact‖ / ‖exact‖; and two
runs on the same data must agree in every bit, the first of them with NaN in what is not written
yet: a race shows as bits that move. The most important cases come first, a few repetitions of all
cases before the rest of any.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# cuBLAS's condition for the deterministic algorithms that fill what torch.empty returns.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import gpu_cases
import torch
import whole_step
from gpu_cases import Case, Results, Sizes
from torch import Tensor

STARTED = time.monotonic()
#: Repetitions of each case before any is repeated further, and in the end.
REPEATS = (5, 100)

#: What came of a case: "repeats"; "moved", those whose two runs disagree; "errors" by output, with
#: median, worst and bound; "kernels" by where they came from; "failed", if it raised an error.
Entry = dict[str, Any]


def counts() -> dict[str, int]:
    """Kernels of this process so far, by where they came from."""
    from rrd_kernels.triton.runtime import run

    return run.counts()


def poisoned(wanted: bool) -> None:
    """Whether what torch.empty returns is filled with NaN, in C++ too."""
    torch.use_deterministic_algorithms(wanted)


def relative(found: Tensor, exact: Tensor) -> Tensor:
    found, exact = found.double(), exact.double()
    # Zero where both are zero; what should be zero and is not is infinitely wrong.
    return torch.where((found == exact).all(), 0.0, (found - exact).norm() / exact.norm())


def moved(first: Results, second: Results) -> Tensor:
    """How many elements two runs disagree in; a NaN agrees with nothing."""
    return torch.stack([(first[name] != second[name]).sum() for name in first]).sum()


def repeated(case: Case, count: int) -> Entry:
    """``count`` repetitions, without waiting for the device before the last."""
    errors: dict[str, list[Tensor]] = {}
    moves = []
    for number in range(count):
        drawn = case.draw()
        poisoned(True)
        first = case.fused(drawn)
        poisoned(False)
        second = case.fused(drawn)
        exact = case.exact(drawn)
        if number == 0:
            bounds = case.bounds(drawn, exact)
        for name, found in first.items():
            errors.setdefault(name, []).append(relative(found, exact[name]))
        moves.append(moved(first, second))
    return {
        "repeats": count,
        "moved": torch.stack(moves).count_nonzero().item(),
        "errors": {
            name: summary(torch.stack(values).tolist(), bounds[name])
            for name, values in errors.items()
        },
    }


def summary(errors: Sequence[float], bound: float) -> dict[str, float]:
    numbers = [math.inf if math.isnan(error) else error for error in errors]
    return {"median": statistics.median(numbers), "worst": max(numbers), "bound": bound}


def in_a_graph(case: Case, count: int) -> Entry:
    """Replays on fresh data against eager runs on the same."""
    kept = case.draw()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            case.fused(kept)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.fused(kept)
    moves = []
    for _ in range(count):
        drawn = case.draw()
        for old, new in zip(tensors(kept), tensors(drawn), strict=True):
            old.copy_(new)
        for value in captured.values():
            value.zero_()
        graph.replay()
        moves.append(moved(captured, case.fused(drawn)))
    return {"repeats": count, "moved": torch.stack(moves).count_nonzero().item()}


def on_a_side_stream(case: Case, count: int) -> Entry:
    """A stream that has been told to wait, so that work on another one would come too early."""
    work = [case.draw() for _ in range(count)]
    wanted = [case.fused(drawn) for drawn in work]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        found = [case.fused(drawn) for drawn in work]
    torch.cuda.current_stream().wait_stream(side)
    moves = [moved(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)]
    return {"repeats": count, "moved": torch.stack(moves).count_nonzero().item()}


def in_two_threads(case: Case, count: int) -> Entry:
    """Each on a stream of its own, at once."""
    work = [case.draw() for _ in range(count)]
    wanted = [case.fused(drawn) for drawn in work]
    torch.cuda.synchronize()
    found: dict[int, list[Results]] = {}

    def run(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[number] = [case.fused(drawn) for drawn in work]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    moves = [
        moved(ours, theirs)
        for number in range(2)
        for ours, theirs in zip(found[number], wanted, strict=True)  # a thread that failed has none
    ]
    return {"repeats": 2 * count, "moved": torch.stack(moves).count_nonzero().item()}


def tensors(value: Any) -> list[Tensor]:
    """All in what a case draws."""
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else vars(value).values()
    return [
        tensor
        for part in parts
        if not isinstance(part, float | bool | str | None)
        for tensor in tensors(part)
    ]


class Job(NamedTuple):
    """Something that can be repeated."""

    name: str
    repeat: Callable[[int], Entry]


def jobs(sizes: Sizes) -> list[Job]:
    """In order of importance."""
    watched = [
        Job(f"{case.name}, {manner.__name__.replace('_', ' ')}", partial(manner, case))
        for case in gpu_cases.watched_cases(sizes)
        for manner in (in_a_graph, on_a_side_stream, in_two_threads)
    ]
    first, further = (
        [Job(case.name, partial(repeated, case)) for case in cases(sizes)]
        for cases in (gpu_cases.first_cases, gpu_cases.further_cases)
    )
    whole = Job("whole step in a graph", whole_step.in_a_graph)
    return [*first, *watched, whole, *further]


def merged(before: Entry | None, entry: Entry) -> Entry:
    """Both together: the worst error, beside its own bound, and the median of the later, which has
    more repetitions."""
    if before is None:
        return entry
    errors = {
        name: max(values, before["errors"][name], key=share) | {"median": values["median"]}
        for name, values in entry.get("errors", {}).items()
    }
    sums = {name: before[name] + entry[name] for name in ("repeats", "moved", "seconds")}
    kernels = {place: before["kernels"][place] + n for place, n in entry["kernels"].items()}
    return {**before, **entry, **sums, "kernels": kernels, "errors": errors}


def what_is_wrong(entry: Entry) -> list[str]:
    found = [entry["failed"]] if "failed" in entry else []
    if entry["moved"]:
        found.append(f"bits moved in {entry['moved']} of {entry['repeats']} repetitions")
    for name, error in entry.get("errors", {}).items():
        if not error["worst"] <= error["bound"]:
            found.append(f"{name} is off by {error['worst']:.2g}, allowed {error['bound']:.2g}")
    return found


def attempt(job: Job, count: int) -> Entry:
    # Draws of its own: what is wrong in one run is wrong in the next.
    torch.manual_seed(zlib.crc32(f"{job.name} {count}".encode()))
    started, before = time.monotonic(), counts()
    try:
        entry = job.repeat(count)
    except Exception as error:  # the other cases are to be run all the same
        entry = {"repeats": 0, "moved": 0, "failed": f"{type(error).__name__}: {error}"[:500]}
    entry["seconds"] = round(time.monotonic() - started, 3)
    entry["kernels"] = {place: n - before[place] for place, n in counts().items()}
    return entry


def check(
    work: Sequence[Job],
    entries: dict[str, Entry],
    repeats: Sequence[int],
    deadline: float,
    save: Callable[[str, Entry], object],
) -> bool:
    """Adds to ``entries``, which may hold some already; whether the device can still be used."""
    for wanted in repeats:
        for job in work:
            before = entries.get(job.name)
            missing = wanted - (before["repeats"] if before else 0)
            failed = before is not None and "failed" in before
            if missing <= 0 or failed or time.monotonic() > deadline:
                continue
            entries[job.name] = merged(before, attempt(job, missing))
            save(job.name, entries[job.name])
            if "failed" in entries[job.name] and not usable():
                return False
    return True


def usable() -> bool:
    """Not after an illegal access, for instance: all that follows would fail."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def read(path: Path) -> dict[str, Entry]:
    """The entries in a file of ``--output``, which may have been cut short."""
    entries = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            entries[entry.pop("name")] = entry
    return entries


def table(entries: Mapping[str, Entry]) -> str:
    """A row for each case, of the output that is nearest to its bound."""
    heads = ("case", "repeats", "output", "median", "worst", "bound", "moved", "kernels")
    rows = [heads]
    for name, entry in entries.items():
        kernels = ", ".join(f"{n} {place}" for place, n in entry["kernels"].items() if n)
        errors = entry.get("errors") or {"": dict.fromkeys(("median", "worst", "bound"))}
        output, error = max(errors.items(), key=lambda item: share(item[1]))
        numbers = ("" if value is None else f"{value:.1e}" for value in error.values())
        row = (name, str(entry["repeats"]), output, *numbers, str(entry["moved"]), kernels)
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def share(error: Mapping[str, float | None]) -> float:
    """Of the bound; what must be zero has all of it or none."""
    if error["worst"] is None or error["bound"] is None:
        return 0.0
    return error["worst"] / error["bound"] if error["bound"] else math.inf * (error["worst"] > 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Every kernel on a GPU against the float64 reference, and against itself."
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="JSON lines, one for each time a case has been repeated; what is there already is "
        "not repeated (default: none are written)",
    )
    parser.add_argument(
        "--within",
        type=float,
        default=45.0,
        metavar="SECONDS",
        help="after which no case begins (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, once each: shows that all of it runs"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        print("No GPU: PyTorch sees none here.", file=sys.stderr)
        return 2
    output: Path | None = arguments.output
    deadline = STARTED + arguments.within
    entries = read(output) if output else {}
    work = jobs(gpu_cases.QUICK if arguments.quick else Sizes())

    def save(name: str, entry: Entry) -> None:
        if output:
            with open(output, "a") as file:
                file.write(json.dumps({"name": name, **entry}, ensure_ascii=False) + "\n")

    repeats = (1,) if arguments.quick else REPEATS
    if not check(work, entries, repeats, deadline, save) and output:
        # In a new process, which begins with what has been written.
        left = ["--within", str(deadline - time.monotonic())]
        os.execv(sys.executable, [sys.executable, *sys.argv, *left])
    wrong = {name: found for name, entry in entries.items() if (found := what_is_wrong(entry))}
    print(table(entries))
    for name, found in wrong.items():
        print(f"WRONG {name}: {'; '.join(found)}")
    missing = [job.name for job in work if job.name not in entries]
    if missing:
        print(f"no time was left for {len(missing)} of {len(work)}, from {missing[0]} on")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
