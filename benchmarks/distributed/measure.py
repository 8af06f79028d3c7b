"""Steps on this machine, in processes of one thread each over gloo, and the model of them."""

import math
import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.distributed.model import GATHERS, Link, Machine, Step
from benchmarks.measuring.clocks import spread, wall_time
from benchmarks.measuring.hardware import busy_cores, environment
from rrd_kernels import RRDLoss

BATCH, DIM = 64, 128
SIZES = (8192, 32768, 131072)  # rows K
RANKS, ROUNDS = (1, 2, 4), 100
CPU = torch.device("cpu")


def measure() -> dict[str, Any]:
    """A record: ``rows`` of {gather, ranks, size, seconds}, and what they were measured on."""
    cores = {"cores": len(os.sched_getaffinity(0))}
    record = environment(CPU) | {"busy_cores": busy_cores(), "machine": cores, "rows": []}
    for world in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_rank, (world, folder, SIZES), nprocs=world)
            record["rows"] += torch.load(f"{folder}/rows", weights_only=True)
    return record


def of_processes(record: dict[str, Any]) -> tuple[Machine, dict[Step, float]]:
    """The model's machine, of one process at the two smallest K and two with "keys" at the
    smallest; and the seconds of all steps that were measured."""
    steps = {
        Step(row["gather"], row["ranks"], row["size"], BATCH, DIM): row["seconds"]["median"]
        for row in record["rows"]
    }
    small, large = sorted({step.size for step in steps})[:2]
    alone, longer = (steps[Step("none", 1, size, BATCH, DIM)] for size in (small, large))
    per_row = (longer - alone) / (large - small)
    message = (steps[Step("keys", 2, small, BATCH, DIM)] - alone) / 2  # the header, and the keys
    machine = Machine(
        name="this machine, float32, a thread to a process",
        step=max(0.0, alone - per_row * small),
        flops=8 * BATCH * DIM / per_row,
        links=(Link(start=0.0, latency=message),),
        read=math.inf,
        agree=0.0,
        round=message,
        cores=record["machine"]["cores"],
    )
    return machine, steps


def _rank(rank: int, world: int, folder: str, sizes: tuple[int, ...]) -> None:
    """All that is measured with one W; rank 0 writes it to ``folder``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    widths: Any = dict.fromkeys(("s_dim", "t_dim", "feat_dim"), DIM)
    f_s = torch.randn(BATCH, DIM, device=CPU, requires_grad=True)
    f_t = torch.randn(BATCH, DIM, device=CPU)
    steps = {
        (gather, size): RRDLoss(**widths, nce_k=size, gather=gather, start="unit", device=CPU)
        for gather in (GATHERS if world > 1 else GATHERS[:1])
        for size in sizes
    }

    def seconds(criterion: RRDLoss) -> float:
        return wall_time(lambda: criterion(f_s, f_t).backward(), CPU)

    # On every rank as many rounds, however long they take.
    times = [list(map(seconds, steps.values())) for _ in range(1 + ROUNDS)]
    rows = [
        {"gather": gather, "ranks": world, "size": size, "seconds": spread(list(taken[1:]))}
        for (gather, size), taken in zip(steps, zip(*times, strict=True), strict=True)
    ]
    if rank == 0:
        torch.save(rows, f"{folder}/rows")
    dist.barrier()  # whose last messages have arrived everywhere
    dist.destroy_process_group()
