"""A memory that is spread because one process is not to hold it: made, and trained on."""

import tempfile
import time
from typing import NamedTuple

import torch
import torch.multiprocessing as mp

from benchmarks.distributed.processes import join
from benchmarks.measure import peak_extra_memory
from rrd_kernels import RRDLoss

RANKS, BATCH, DIM = 2, 16, 128
#: Rows that a step of all ranks writes.
LEAST = RANKS * BATCH


class Large(NamedTuple):
    """What the slowest and largest of the processes took."""

    size: int
    made: float  # seconds until the criterion was there
    step: float  # seconds of the second training step
    held: int  # bytes of its rows
    peak: int  # bytes more than before it was made, at most

    def __str__(self) -> str:
        return (
            f"K = {self.size} rows of {DIM} bfloat16 numbers over {RANKS} processes, each with "
            f"B = {BATCH}: made in {self.made:.1f} s; a step takes {self.step:.2f} s; a process "
            f"holds {self.held / 2**30:.2f} GiB of rows, and took {self.peak / 2**30:.2f} GiB at "
            f"most"
        )


def _train(rank: int, folder: str, size: int) -> None:
    join(rank, RANKS, folder)
    f_s, f_t = torch.randn(BATCH, DIM, requires_grad=True), torch.randn(BATCH, DIM)
    made = step = 0.0
    held = 0

    def train() -> None:
        nonlocal made, step, held
        started = time.perf_counter()
        criterion = RRDLoss(
            s_dim=DIM,
            t_dim=DIM,
            feat_dim=DIM,
            nce_k=size,
            gather="shard",
            start="unit",
            memory_dtype=torch.bfloat16,
        )
        made = time.perf_counter() - started
        for _ in range(2):
            started = time.perf_counter()
            criterion(f_s, f_t).backward()
            step = time.perf_counter() - started
        held = criterion.state_dict()["memory.queue"].to_local().nbytes

    peak = peak_extra_memory(train)
    torch.save((size, made, step, held, peak), f"{folder}/{rank}")


def large(size: int) -> Large:
    """Makes a memory of ``size`` rows over two processes and trains two steps on it."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_train, (folder, size), nprocs=RANKS)
        found = [torch.load(f"{folder}/{rank}", weights_only=True) for rank in range(RANKS)]
    return Large(*(max(each) for each in zip(*found, strict=True)))
