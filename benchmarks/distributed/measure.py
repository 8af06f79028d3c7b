"""Steps and collectives on this machine: processes of one thread each, over gloo."""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.distributed.model import GATHERS, HEADER_BYTES, Link, Machine, Step
from benchmarks.distributed.processes import join
from benchmarks.measure import Spread
from rrd_kernels import FifoMemory, RRDLoss
from rrd_kernels.distributed.collectives import gather_numbers
from rrd_kernels.distributed.fifo import keys_step
from rrd_kernels.distributed.ranks import Ranks

BATCH, DIM = 64, 128
RANKS = (1, 2, 4)
#: Rows that are measured.
SIZES = (8192, 32768, 131072)
#: As many sizes, the smallest, give t_step and flops.
GIVING = 2
#: Bytes of a rank's message that give the bandwidth.
LARGE = 1 << 20
#: Rows of the steps that tell what agreeing takes: so few that all else takes little.
FEW = 256
#: Ranks whose header is timed, and gloo's ring in its place.
HEADERS = (4, 8, 16)


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


def _agree(rank: int, folder: str, least: float) -> None:
    join(rank, 1, folder)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    memory = FifoMemory(DIM, DIM, DIM, FEW, start="unit")
    f_s, f_t = torch.randn(BATCH, DIM, requires_grad=True), torch.randn(BATCH, DIM)
    temperatures = {"tau_s": 0.1, "tau_t": 0.02}
    settings: dict[str, Any] = {**temperatures, "precision": None, "backend": "auto"}
    prepare = functools.partial(memory._prepare, f_s, f_t, True)
    everyones = torch.empty_like(f_t)
    ways = {
        "several": lambda: keys_step(memory, prepare, settings),
        "one": lambda: memory(f_s, f_t, **temperatures),
        "message": lambda: dist.all_gather_into_tensor(everyones, f_t),
    }
    found = {name: timed(way, least).spread.median for name, way in ways.items()}
    torch.save(found["several"] - found["one"] - 2 * found["message"], f"{folder}/found")
    dist.destroy_process_group()


def agree_seconds(least: float) -> float:
    """What a step that does all that several ranks do takes longer than a plain one.

    In a group of one process, which waits for no other; its two messages, timed alone, are taken
    off.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_agree, (folder, least))
        return float(torch.load(f"{folder}/found", weights_only=True))


def _ring(ranks: Ranks, device: torch.device, mine: list[int]) -> list[list[int]]:
    """What :func:`gather_numbers` does, by gloo's all-gather."""
    numbers = torch.tensor(mine, dtype=torch.int64, device=device)
    heard = numbers.new_empty(ranks.size, len(mine))
    dist.all_gather_into_tensor(heard.view(-1), numbers, group=ranks.group)
    found: list[list[int]] = heard.tolist()
    return found


def _headers(rank: int, world: int, folder: str, least: float) -> None:
    join(rank, world, folder)
    ranks, device, mine = Ranks("keys"), torch.device("cpu"), [rank] * (HEADER_BYTES // 8)
    found = {
        name: timed(functools.partial(way, ranks, device, mine), least, dist.barrier).as_record()
        for name, way in (("ring", _ring), ("header", gather_numbers))
    }
    dist.barrier()
    if rank == 0:
        torch.save({"ranks": world, **found}, f"{folder}/found")
    dist.destroy_process_group()


def headers(worlds: Sequence[int] = HEADERS, least: float = 1.0) -> list[dict[str, Any]]:
    """Times of the header and of gloo's ring in its place: {ranks, ring, header}, either as a row's
    seconds and rounds; of processes that come from a barrier."""
    found = []
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_headers, (world, folder, least), nprocs=world)
            found.append(torch.load(f"{folder}/found", weights_only=True))
    return found


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


def measure(
    sizes: Sequence[int] = SIZES, least: float = 2.0, worlds: Sequence[int] = HEADERS
) -> dict[str, Any]:
    """Times of all modes at W = 1, 2 and 4, and the constants that the model takes of them.

    Args:
        sizes: K, three of them.
        least: seconds of each measurement, at least.
        worlds: W of the headers.

    Returns:
        ``rows``, a list of {gather, ranks, size, seconds, rounds}, seconds as a :class:`Spread`'s
        fields; ``machine``, as :meth:`Machine.as_record` has it; ``headers``, as :func:`headers`.
    """
    rows, messages = [], {}
    for world in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_measure, (world, folder, sizes, least), nprocs=world)
            found, messages[world] = torch.load(f"{folder}/found", weights_only=True)
            rows += found
    machine = constants(rows, messages[2], agree_seconds(least))
    return {"rows": rows, "machine": machine.as_record(), "headers": headers(worlds, least / 2)}


def constants(rows: Sequence[dict[str, Any]], messages: dict[str, float], agree: float) -> Machine:
    """The model's, out of one process at two sizes, two processes' messages, and agreeing."""
    small, large = sorted(row["size"] for row in rows if row["ranks"] == 1)[:GIVING]
    alone = {row["size"]: median_of(row) for row in rows if row["ranks"] == 1}
    per_row = (alone[large] - alone[small]) / (large - small)
    latency, moving = messages[str(HEADER_BYTES)], messages[str(LARGE)]
    return Machine(
        name="this machine, float32, a thread to a process",
        step=max(0.0, alone[small] - per_row * small),
        flops=8 * BATCH * DIM / per_row,
        links=(Link(0.0, latency, LARGE / max(moving - latency, 1e-9)),),
        agree=max(0.0, agree),
        round=latency,
        cores=float(len(os.sched_getaffinity(0))),
    )


def median_of(row: dict[str, Any]) -> float:
    """Seconds; older records have these alone."""
    seconds = row["seconds"]
    return seconds["median"] if isinstance(seconds, dict) else seconds


def step_of(row: dict[str, Any]) -> Step:
    """What a row has measured."""
    return Step(row["gather"], row["ranks"], row["size"], BATCH, DIM)
