"""Steps and messages on this machine, in processes of one thread each over gloo."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.distributed.model import GATHERS, HEADER_BYTES, Machine, Step, seconds
from benchmarks.measure import Spread
from rrd_kernels import RRDLoss

BATCH, DIM = 64, 128
#: Rows K; the two smallest give t_step and flops, the smallest t_agree.
SIZES = (8192, 32768, 131072)
RANKS = (1, 2, 4)
#: Bytes of a rank's messages that give latency and bandwidth.
MESSAGES = (HEADER_BYTES, 1 << 20)


def measure(
    sizes: Sequence[int] = SIZES, rounds: int = 100, worlds: Sequence[int] = RANKS
) -> dict[str, Any]:
    """Times of a step in all modes, and the model's constants.

    Args:
        sizes: K, two at least, ascending.
        rounds: of each measurement.
        worlds: W; 1 and 2 give the constants.

    Returns:
        ``rows``, of {gather, ranks, size, seconds}; ``machine``, see :meth:`Machine.of_record`.
    """
    rows, messages = [], {}
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_rank, (world, folder, sizes, rounds), nprocs=world)
            found, messages[world] = torch.load(f"{folder}/found", weights_only=True)
        rows += found
    return {"rows": rows, "machine": constants(rows, messages[2])}


def constants(rows: Sequence[Mapping[str, Any]], messages: Sequence[float]) -> dict[str, Any]:
    """Out of one process's steps at the two smallest sizes, a step of two with ``"keys"`` at the
    smallest, and the seconds of two processes' :data:`MESSAGES`."""
    found = {(row["gather"], row["ranks"], row["size"]): row["seconds"]["median"] for row in rows}
    small, large = sorted({row["size"] for row in rows})[:2]
    per_row = (found["none", 1, large] - found["none", 1, small]) / (large - small)
    latency, moving = messages
    link = {
        "start": 0.0,
        "latency": latency,
        "bandwidth": MESSAGES[1] / max(moving - latency, 1e-9),
    }
    fields = {
        "name": "This machine, float32, a thread to a process",
        "step": max(0.0, found["none", 1, small] - per_row * small),
        "flops": 8 * BATCH * DIM / per_row,
        "links": [link],
        "round": latency,
        "cores": len(os.sched_getaffinity(0)),
    }
    step = Step("keys", 2, small, BATCH, DIM)
    agree = found["keys", 2, small] - seconds(Machine.of_record(fields), step)
    return fields | {"agree": max(0.0, agree)}


def steps_of(record: Mapping[str, Any]) -> list[tuple[Step, float]]:
    """What was measured, and its seconds."""
    return [
        (Step(row["gather"], row["ranks"], row["size"], BATCH, DIM), row["seconds"]["median"])
        for row in record["rows"]
    ]


def _rank(rank: int, world: int, folder: str, sizes: Sequence[int], rounds: int) -> None:
    """All that is measured with one W; rank 0 writes it to ``folder``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    rows = []
    for gather, size in itertools.product(GATHERS if world > 1 else GATHERS[:1], sizes):
        taken = asdict(timed(_step(gather, size), rounds))
        rows.append({"gather": gather, "ranks": world, "size": size, "seconds": taken})
    messages = [_message(size, _step("none", sizes[0]), rounds) for size in MESSAGES]
    if rank == 0:
        torch.save((rows, messages), f"{folder}/found")
    dist.barrier()
    dist.destroy_process_group()


def timed(
    call: Callable[[], object], rounds: int, before: Callable[[], object] = lambda: None
) -> Spread:
    """Of calls that each come after an untimed ``before()``; the first two do not count."""
    times = []
    for _ in range(2 + rounds):
        before()
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return Spread.of(times[2:])


def _step(gather: str, size: int) -> Callable[[], None]:
    """A training step of this rank, from embeddings on."""
    criterion = RRDLoss(s_dim=DIM, t_dim=DIM, feat_dim=DIM, nce_k=size, gather=gather, start="unit")
    f_s, f_t = torch.randn(BATCH, DIM, requires_grad=True), torch.randn(BATCH, DIM)
    return lambda: criterion(f_s, f_t).backward()


def _message(size: int, before: Callable[[], None], rounds: int) -> float:
    """Seconds of an all-gather of ``size`` bytes from each rank, each of which comes from a step of
    its own: not all come at once, and with a core for each rank none is left for gloo's threads, so
    that a message takes longer than between processes that do nothing else."""
    mine = torch.zeros(size, dtype=torch.uint8)
    everyones = mine.repeat(dist.get_world_size())
    return timed(lambda: dist.all_gather_into_tensor(everyones, mine), rounds, before).median
