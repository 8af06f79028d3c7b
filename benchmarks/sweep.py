"""Times other plans than the table's on a GPU: ``python -m benchmarks.sweep --help``."""

import argparse
import datetime
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import cuda, hardware, record
from benchmarks.agreement import Check, agreed, agreement
from benchmarks.cases import Case
from benchmarks.inputs import Batch, State, draw
from benchmarks.measure import (
    NOT_MEASURED,
    Spread,
    calls_in_a_block,
    first_line,
    float32_matmul_precision,
    interleaved,
    matmul_rate,
    outcome_of,
)
from benchmarks.paths import RESULTS, new_record
from benchmarks.peers import PublishedEager
from benchmarks.plan import plan_for
from benchmarks.report import report
from benchmarks.resources import resources
from benchmarks.run import captured, median_ratio
from benchmarks.sweep_rows import GAIN, MARK, Row, Sweep, print_sweep
from benchmarks.turns import turns
from benchmarks.variants import (
    H200,
    QUICK_SIZES,
    SIZES,
    TABLE,
    Variant,
    VariantStep,
    described,
    variants,
)
from rrd_kernels.ops import EXTENSION_ERROR
from rrd_kernels.triton.configs import Hardware

#: Of all, but for what Python takes to start.
TOTAL_SECONDS = 170.0
#: For the timing of each size; what else it takes is not counted.
SIZE_SECONDS = 4.0

EXPLANATION = f"""\
Each variant is one change of the plan for a step that enqueues the teacher's rows
and computes mean loss and gradient, in three kernels and without autograd. Each
must first agree with the float64 reference; then all of a size take turns.

  error        of the gradient, relative to the reference's
  µs           of a step in the replay of a CUDA graph, by the device's clock: median
               [20th-80th percentile]
  of torch.mm  8·B·D·K operations in that time, as a share of the rate of a large
               torch.mm in the same format
  × table      how many times faster than the table's way, median over the rounds;
               {MARK} from {GAIN} on

Of the second kernel, as the driver has it:

  registers, spilled, shared KiB
               registers and spilled bytes of a thread, shared memory of a program
  programs     that a multiprocessor holds at a time
"""


def measure(case: Case, sweep: Sweep, device: torch.device, seconds: float, end: float) -> None:
    """Adds the rows of one size.

    Args:
        case: the size.
        sweep: what they are added to: each as soon as it is checked, again when it is timed.
        device: the GPU.
        seconds: how long to time, all together; at least seven rounds.
        end: on time.monotonic(); what is not begun by then is not measured.
    """
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    listed = variants(case, Hardware(H200.family, multiprocessors))
    for variant in listed:
        sweep.put(Row(case, variant, outcome=NOT_MEASURED, reason="it was not reached"))
    if time.monotonic() > end:
        return
    state, batches = draw(case, device)
    judge = agreement(case, state, batches[0])
    judge.check(PublishedEager(case, state))  # the measure of what the others may err by
    timers: dict[str, Callable[[], float]] = {}
    for variant in listed:
        if time.monotonic() > end:
            break
        row, timer = _prepare(case, variant, state, batches, judge, device)
        sweep.put(row)
        if timer is not None:
            timers[variant.name] = timer
    if not timers:
        return
    times = interleaved(timers, min(seconds, end - time.monotonic()))
    for variant in listed:
        if (taken := times.get(variant.name)) is None:
            continue
        gain = median_ratio(times[TABLE], taken) if TABLE in times else None
        row = sweep.rows[case, variant]
        sweep.put(replace(row, seconds=Spread.of(taken), rounds=len(taken), gain=gain))


def _prepare(
    case: Case,
    variant: Variant,
    state: State,
    batches: Sequence[Batch],
    judge: Check,
    device: torch.device,
) -> tuple[Row, Callable[[], float] | None]:
    """What is known before anything is timed, and what times it, if it may be."""
    row = Row(case, variant)
    try:
        steps, errors, _ = agreed(
            VariantStep(case, state, variant), judge, hardware.cache_bytes(device)
        )
        row = replace(row, errors=errors, resources=resources(described(case, variant)[1]))
        calls = turns(steps, batches)
        replay = captured(steps, calls).replay
    except Exception as error:  # a compiler's, a driver's: the others can be measured still
        return replace(row, outcome=outcome_of(error), reason=first_line(error)), None
    times = calls_in_a_block(partial(cuda.device_time, replay))
    return row, lambda: cuda.device_time(replay, times) / len(calls)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description="Block sizes, splits and dependent launches beside the table's, timed on a GPU "
        "of compute capability 9.0 within three minutes. Writes a JSON file and prints a table.",
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where the JSON goes; where it exists, a number is added to its name "
        "(default: benchmarks/results/<device>-sweep-<date>.json)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SIZE_SECONDS,
        help="how long to time each size, but seven rounds at least; more than %(default)s takes "
        "longer than three minutes (default: %(default)s)",
    )
    parser.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help=f"after which nothing more is begun (default: {TOTAL_SECONDS:.0f}, and what --seconds "
        "takes beyond its own)",
    )
    parser.add_argument(
        "--cases",
        default="",
        metavar="TEXT",
        help="only the sizes whose name contains TEXT, such as tf32 or 256x16384 (default: all)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that all of it runs, nothing else"
    )
    chosen = parser.parse_args(arguments)
    chosen.device = torch.device("cuda")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(chosen.device) != (9, 0):
        parser.error("the variants are for GPUs of compute capability 9.0, such as an H200")
    if EXTENSION_ERROR is not None:
        parser.error(f"{EXTENSION_ERROR}; make setup builds it")
    if not chosen.seconds >= 0:
        parser.error(f"--seconds must not be negative; got {chosen.seconds}")
    wanted, sizes = chosen.cases.replace("x", "×"), QUICK_SIZES if chosen.quick else SIZES
    chosen.sizes = [case for case in sizes if wanted in case.name]
    if not chosen.sizes:
        names = ", ".join(case.name for case in sizes)
        parser.error(f"no size's name contains {wanted!r}; there are {names}")
    kind = "sweep-quick" if chosen.quick else "sweep"
    name = f"{hardware.slug(chosen.device)}-{kind}-{datetime.date.today().isoformat()}.json"
    try:
        chosen.output = new_record(chosen.output or RESULTS / name)
    except (OSError, ValueError) as error:
        parser.error(f"--output: {error}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    given = sys.argv[1:] if arguments is None else arguments
    chosen = parse_arguments(given)
    device: torch.device = chosen.device
    plan = plan_for(device, chosen.quick)
    seconds = 0.0 if chosen.quick else chosen.seconds
    beyond = len(chosen.sizes) * max(0.0, seconds - SIZE_SECONDS)
    end = started + (TOTAL_SECONDS + beyond if chosen.within is None else chosen.within)
    command = shlex.join(["python", "-m", "benchmarks.sweep", *given])
    sweep = Sweep(chosen.output, {"command": command} | record.environment(device), started)
    try:
        for case in chosen.sizes:
            report(case.name)
            with float32_matmul_precision(case.matmul_precision):
                if case.format not in sweep.mm_rate:
                    sweep.mm_rate[case.format] = matmul_rate(
                        case.dtype, device, plan.matmul_sizes, plan.ceiling_seconds
                    )
                try:
                    measure(case, sweep, device, seconds, end)
                except Exception as error:
                    sweep.failures.append(f"{case.name}: {first_line(error)}")
                    traceback.print_exception(error)
    finally:  # after an interrupt too
        sweep.save()
        print_sweep(sweep)
        print(f"written to {sweep.path}")
    return 1 if sweep.failed else 0


if __name__ == "__main__":
    sys.exit(main())
