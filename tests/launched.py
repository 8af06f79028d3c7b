"""Ranks as a launcher starts them, for packages that make the process group themselves."""

import os
import socket

import torch.distributed as dist


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def leave_the_group(rank: int, port: int) -> None:
    """As torchrun starts a script, on one of two ranks."""
    dist.barrier()  # a rank that leaves at once breaks the connections that the other still makes
    dist.destroy_process_group()
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"},
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
