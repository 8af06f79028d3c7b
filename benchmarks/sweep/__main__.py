"""Times other plans than the table's on a GPU: ``python -m benchmarks.sweep --help``."""

import argparse
import datetime
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import cuda, hardware
from benchmarks.agreement import Check, agreed, agreement
from benchmarks.cases import Case
from benchmarks.inputs import Batch, draw
from benchmarks.measure import Spread, calls_in_a_block, float32_matmul_precision, interleaved
from benchmarks.paths import RESULTS, new_record, write_whole
from benchmarks.peers import PublishedEager
from benchmarks.record import environment
from benchmarks.run import captured, median_ratio
from benchmarks.sweep import variants as plans
from benchmarks.sweep.resources import resources
from benchmarks.turns import turns

DESCRIPTION = """Other plans than the table's for the step's three kernels, on a GPU of compute
capability 9.0. Each must first agree with the float64 reference; then all of a size take turns, in
the replay of a CUDA graph, by the device's clock."""
#: For the timing of each size; seven rounds at least.
SIZE_SECONDS = 4.0
NOT_REACHED = "not reached"
GPU = torch.device("cuda")

#: JSON's: case, variant, errors, resources, seconds, gain (how many times faster than the table's
#: plan, the median over the rounds) and outcome, which is ``None`` once it is timed.
Row = dict[str, Any]


def measure(
    case: Case, rows: list[Row], save: Callable[[], None], seconds: float, end: float
) -> None:
    """Adds the rows of one size to ``rows``, saves each as soon as it is checked, and times them
    for ``seconds``; what is not begun by ``end``, on time.monotonic(), is not measured."""
    multiprocessors = torch.cuda.get_device_properties(GPU).multi_processor_count
    listed = plans.variants(case, plans.H200._replace(multiprocessors=multiprocessors))
    own = {variant.name: _row(case, variant) for variant in listed}
    rows += own.values()
    if time.monotonic() > end:
        return
    state, batches = draw(case, GPU)
    judge = agreement(case, state, batches[0])
    judge.check(PublishedEager(case, state))  # the measure of what the others may err by
    timers = {}
    for variant in listed:
        if time.monotonic() > end:
            break
        row = own[variant.name]
        try:
            step = plans.VariantStep(case, state, variant)
            timers[variant.name] = _timer(step, row, batches, judge)
        except Exception as error:  # a compiler's, a driver's: the others can be measured still
            row["outcome"] = f"{type(error).__name__}: {error}".splitlines()[0]
        save()
    if plans.TABLE in timers:
        times = interleaved(timers, min(seconds, end - time.monotonic()))
        for name, taken in times.items():
            spread, gain = asdict(Spread.of(taken)), median_ratio(times[plans.TABLE], taken)
            own[name] |= {"seconds": spread, "gain": gain, "outcome": None}
    print(*map(_line, own.values()), sep="\n", flush=True)


def _row(case: Case, variant: plans.Variant) -> Row:
    plan = variant.plan._asdict() | {"config": variant.plan.config._asdict()}
    how = {"name": variant.name, "plan": plan, "constants": dict(variant.constants)}
    missing = dict.fromkeys(("errors", "resources", "seconds", "gain"))
    return {"case": asdict(case), "variant": how, **missing, "outcome": NOT_REACHED}


def _line(row: Row) -> str:
    if row["seconds"] is None:
        return f"  {row['variant']['name']}: {row['outcome']}"
    median, p20, p80 = (1e6 * row["seconds"][name] for name in ("median", "p20", "p80"))
    needed = "".join(f", {name} {value}" for name, value in (row["resources"] or {}).items())
    return (
        f"  {row['variant']['name']:36}{median:8.1f} µs [{p20:.1f}–{p80:.1f}], {row['gain']:.2f} "
        f"× table, gradient off by {row['errors']['gradient']:.1e}{needed}"
    )


def _timer(
    step: plans.VariantStep, row: Row, batches: Sequence[Batch], judge: Check
) -> Callable[[], float]:
    """Seconds of a step, once it agrees with the reference and ``row`` says what it needs."""
    steps, errors, _ = agreed(step, judge, hardware.cache_bytes(GPU))
    row["errors"] = errors and asdict(errors)
    row["resources"] = resources(plans.described(step.case, step.variant)[1])
    calls = turns(steps, batches)
    replay = captured(steps, calls).replay
    times = calls_in_a_block(partial(cuda.device_time, replay))
    return lambda: cuda.device_time(replay, times) / len(calls)


def main(arguments: Sequence[str] | None = None) -> int:
    started, given = time.monotonic(), sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=DESCRIPTION)
    add = parser.add_argument
    add("--output", type=Path, metavar="PATH", help="a JSON file (default: in benchmarks/results)")
    add("--within", type=float, default=170.0, metavar="SECONDS", help="(default: %(default)s)")
    add("--quick", action="store_true", help="tiny sizes: shows that all of it runs, nothing else")
    chosen = parser.parse_args(given)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        parser.error("the variants are for GPUs of compute capability 9.0, such as an H200")
    name = f"{hardware.slug(GPU)}-sweep-{datetime.date.today().isoformat()}.json"
    path = new_record(chosen.output or RESULTS / name)
    rows: list[Row] = []
    record = {"command": shlex.join(["python", "-m", "benchmarks.sweep", *given])}
    record |= environment(GPU) | {"rows": rows}
    save, failed = partial(write_whole, path, record), False
    sizes, seconds = (plans.QUICK_SIZES, 0.0) if chosen.quick else (plans.SIZES, SIZE_SECONDS)
    for case in sizes:
        print(case.name, flush=True)
        try:
            with float32_matmul_precision(case.matmul_precision):
                measure(case, rows, save, seconds, started + chosen.within)
        except Exception:  # of a whole size, as for want of memory
            failed = True
            traceback.print_exc()
        save()
    print(f"written to {path}")
    return 1 if failed or any(row["outcome"] not in (None, NOT_REACHED) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
