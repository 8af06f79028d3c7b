"""Steps and collectives on this machine: processes of one thread each, over gloo."""

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.distributed.model import GATHERS, HEADER_BYTES, Machine, Step
from benchmarks.distributed.processes import join
from benchmarks.measure import Spread
from rrd_kernels import RRDLoss

BATCH, DIM = 64, 128
RANKS = (1, 2, 4)
#: Rows that are measured; the first two give the constants.
SIZES = (8192, 32768, 131072)
#: Bytes of a rank's message that give the bandwidth.
LARGE = 1 << 20


class Timing(NamedTuple):
    """Seconds of one call."""

    spread: Spread
    rounds: int

    def as_record(self) -> dict[str, Any]:
        return {"seconds": asdict(self.spread), "rounds": self.rounds}


def timed(
    call: Callable[[], object], least: float, before: Callable[[], object] = lambda: None
) -> Timing:
    """Seven rounds at least, each after an untimed ``before()``; ranks do the same number."""
    for _ in range(2):
        before()
        call()
    started = time.perf_counter()
    before()
    call()
    once = torch.tensor(time.perf_counter() - started)
    if dist.is_initialized():
        dist.all_reduce(once, dist.ReduceOp.MAX)
    rounds = max(7, min(1000, int(least / once.item())))
    times = []
    for _ in range(rounds):
        before()
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return Timing(Spread.of(times), rounds)


def step(gather: str, size: int) -> Callable[[], None]:
    """A training step of this rank, from embeddings on."""
    criterion = RRDLoss(s_dim=DIM, t_dim=DIM, feat_dim=DIM, nce_k=size, gather=gather, start="unit")
    f_s = torch.randn(BATCH, DIM, requires_grad=True)
    f_t = torch.randn(BATCH, DIM)
    return lambda: criterion(f_s, f_t).backward()


def gather_seconds(size: int, least: float, rows: int) -> float:
    """An all-gather of ``size`` bytes from each rank, which comes from a step of its own against
    ``rows`` rows: not all come at once, and with a core for each rank none is left for gloo's own
    threads, so that a message takes longer than between processes that do nothing else."""
    mine = torch.zeros(size, dtype=torch.uint8)
    everyones = torch.zeros(dist.get_world_size() * size, dtype=torch.uint8)
    alone = step("none", rows)
    timing = timed(lambda: dist.all_gather_into_tensor(everyones, mine), least, alone)
    return timing.spread.median


def _measure(rank: int, world: int, folder: str, sizes: Sequence[int], least: float) -> None:
    join(rank, world, folder)
    rows = []
    for gather in GATHERS if world > 1 else GATHERS[:1]:
        for size in sizes:
            taken = timed(step(gather, size), least).as_record()
            rows.append({"gather": gather, "ranks": world, "size": size, **taken})
    messages = {}
    if world > 1:
        messages = {
            str(size): gather_seconds(size, least, sizes[0]) for size in (HEADER_BYTES, LARGE)
        }
        dist.barrier()
    if rank == 0:
        torch.save((rows, messages), f"{folder}/found")
    if world > 1:
        dist.destroy_process_group()


def measure(sizes: Sequence[int] = SIZES, least: float = 2.0) -> dict[str, Any]:
    """Times of all modes at W = 1, 2 and 4, and the constants that the model takes of them.

    Args:
        sizes: K, three of them.
        least: seconds of each measurement, at least.

    Returns:
        ``rows``, a list of {gather, ranks, size, seconds, rounds}, seconds as a :class:`Spread`'s
        fields; ``machine``, a :class:`Machine`'s fields.
    """
    rows, messages = [], {}
    for world in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_measure, (world, folder, sizes, least), nprocs=world)
            found, messages[world] = torch.load(f"{folder}/found", weights_only=True)
            rows += found
    machine = constants(rows, messages[2])
    known = {k: v for k, v in machine._asdict().items() if v != math.inf}  # JSON has no infinity
    return {"rows": rows, "machine": known}


def constants(rows: Sequence[dict[str, Any]], messages: dict[str, float]) -> Machine:
    """The model's, out of one process at two sizes and two processes' messages."""
    small, large = sorted(row["size"] for row in rows if row["ranks"] == 1)[:2]
    alone = {row["size"]: median_of(row) for row in rows if row["ranks"] == 1}
    per_row = (alone[large] - alone[small]) / (large - small)
    latency, moving = messages[str(HEADER_BYTES)], messages[str(LARGE)]
    return Machine(
        name="this machine, float32, a thread to a process",
        step=max(0.0, alone[small] - per_row * small),
        flops=8 * BATCH * DIM / per_row,
        read=math.inf,  # reading the rows is in the rate above, which is of this batch
        latency=latency,
        bandwidth=LARGE / max(moving - latency, 1e-9),
        cores=float(len(os.sched_getaffinity(0))),
        ring=True,
    )


def median_of(row: dict[str, Any]) -> float:
    """Seconds; older records have these alone."""
    seconds = row["seconds"]
    return seconds["median"] if isinstance(seconds, dict) else seconds


def step_of(row: dict[str, Any]) -> Step:
    """What a row has measured."""
    return Step(row["gather"], row["ranks"], row["size"], BATCH, DIM)
