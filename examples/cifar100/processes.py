"""The processes that train together, as torchrun starts them; one alone needs nothing of it."""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rrd_kernels.distributed import ignore_in_ddp

T = TypeVar("T")


def start(device: torch.device) -> torch.device:
    """Joins the others, where torchrun has started more than one; this process's device.

    Raises:
        ValueError: several processes are to share one device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.index is not None:
            raise ValueError(
                f"--device {device} would be the device of every process; give --device "
                f"{device.type}"
            )
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        # Whole numbers travel between CPUs, so that reading them waits for no GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def stop() -> None:
    """Leaves the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0, the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def together(module: nn.Module) -> nn.Module:
    """``module``, of which the others have copies: its gradients become the mean over all."""
    if size() == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    return DistributedDataParallel(ignore_in_ddp(module))


def total(values: Iterable[Tensor]) -> list[Tensor]:
    """The sums over all processes of tensors, the same on each."""
    values = [value.clone() for value in values]
    if size() > 1:
        for value in values:
            dist.all_reduce(value)
    return values


def everyones(value: Any) -> list[Any]:
    """What each process has given, in their order."""
    values = [value]
    if size() > 1:
        values = [None] * size()
        dist.all_gather_object(values, value)
    return values


def of_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, in all of them; the others need not have its
    files.

    Raises:
        Exception: what ``make`` raises there.
    """
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:  # which would leave the others waiting
            outcome[1] = error
    if size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    value, refusal = outcome
    if refusal is not None:
        raise refusal
    return value
