"""Processes on this machine that stand for ranks: one thread each, over gloo."""

from datetime import timedelta

import torch
import torch.distributed as dist


def join(rank: int, world: int, folder: str) -> None:
    """Makes this process one of ``world`` that meet in ``folder``; alone it forms no group."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if world > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world,
            timeout=timedelta(minutes=2),
        )
