"""A training step on a FIFO memory of which every rank has a copy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.distributed.agreement import Share, Standing, Step, agree, check_projections
from rrd_kernels.distributed.collectives import copy_from, gather_rows
from rrd_kernels.distributed.ddp import refuse_join
from rrd_kernels.extension import use_fused
from rrd_kernels.fifo import functional
from rrd_kernels.fifo.state import FifoState


def _alike(memory: FifoState, settings: dict[str, Any], z_s: Tensor, z_t: Tensor) -> dict[str, Any]:
    """What all ranks must have alike, by the names that an error uses."""
    return {
        "gather": memory.ranks.gather,
        "memory_type": "fifo",
        "feat_dim": memory.queue.shape[1],
        "memory_dtype": memory.queue.dtype,
        "dtype of z_s": z_s.dtype,
        "dtype of z_t": z_t.dtype,
        "enqueue": memory.enqueue,
        "slot_momentum": memory.slot_momentum,
        "training": memory.training,
        **{name: settings[name] for name in ("tau_s", "tau_t", "precision", "backend")},
    }


def begin(
    memory: FifoState,
    embed: Callable[[], tuple[Tensor, Tensor, bool]],
    settings: dict[str, Any],
) -> tuple[Step, Tensor, Tensor, bool]:
    """What all ranks bring to a step, and what ``embed`` has made of this rank's input.

    A memory that is to be written counts as unfinished from here on, until the step sets it right
    at its end: a rank that fails in between, for want of memory, has another's again at the next
    step. A recomputation, which ends where it has made what it needs, writes nothing.

    Args, Raises: as :func:`keys_step`.
    """
    embedded: list[tuple[Tensor, Tensor, bool]] = []

    def share() -> Share:
        # What the functions would refuse after the ranks have agreed.
        check.check_temperature("tau_s", settings["tau_s"])
        check.check_temperature("tau_t", settings["tau_t"])
        use_fused(memory.backend, memory.queue.device)
        if memory.ranks.are_others() and memory.standing == Standing.ALIKE:
            memory.standing = Standing.STALE
        embedded.append(embed())
        z_s, z_t, writes = embedded[0]
        alike = _alike(memory, settings, z_s, z_t)
        alike |= {"nce_k": memory.shard.size, "update": writes}
        if memory.ranks.gather == "shard":  # no other rank has the rows that one has loaded
            alike["the number of states loaded"] = memory.states_loaded
            alike["the number of batches written since"] = memory.batches_written
        needs_grad = torch.is_grad_enabled() and z_s.requires_grad
        return Share(len(z_s), alike, needs_grad, memory.standing, memory.unit_memory)

    refuse_join(memory.ranks)
    step = agree(memory.ranks, memory.queue.device, share)
    z_s, z_t, writes = embedded[0]
    memory.check_fits(step, writes)
    if step.stale:
        check_projections(memory.ranks, memory.queue.device, memory)
    if writes or step.stale:
        memory.standing = Standing.UNFINISHED
    return step, z_s, z_t, writes


@torch._disable_dynamo  # what ranks tell each other decides what is done
def keys_step(
    memory: FifoState,
    embed: Callable[[], tuple[Tensor, Tensor, bool]],
    settings: dict[str, Any],
) -> Tensor:
    """The loss of this rank's samples; the teacher rows of all ranks enter every rank's memory.

    Args:
        memory: whose step this is; written.
        embed: checks this rank's input and makes z_s and z_t [B, D] of it, and says whether the
            batch is to enter the memory.
        settings: for :func:`rrd_kernels.functional.relational_loss`.

    Returns:
        The mean over this rank's samples, weighted so that the mean over ranks, which is what DDP
        takes of the gradients, is that over all samples.

    Raises:
        RuntimeError, ValueError: as :func:`rrd_kernels.distributed.agreement.agree`; and a
            ValueError where the ranks' batches together do not fit the memory.
    """
    ranks = memory.ranks
    step, z_s, z_t, writes = begin(memory, embed, settings)
    if step.stale:
        copy_from(ranks, step.source, (memory.queue, memory.queue_ptr))
        memory.inspect_rows()
        memory.unit_memory = memory.unit_memory and step.unit_memory
    settings = settings | {"unit_memory": memory.unit_memory and step.unit_memory}
    gathering = gather_rows(ranks, z_t, step.batches) if writes else None
    if gathering is not None and memory.enqueue == "before":
        enqueue_(memory, gathering.wait())
    loss = functional.relational_loss(z_s, z_t, memory.queue, **settings)
    if gathering is not None and memory.enqueue == "after":
        enqueue_(memory, gathering.wait())  # the rows have travelled meanwhile
    memory.standing = Standing.ALIKE
    return step.weighted(loss, ranks.rank)


def enqueue_(memory: FifoState, keys: Tensor) -> None:
    """Writes the unit rows of ``keys`` [B, D], those of all ranks, from the pointer on."""
    functional.enqueue_(
        memory.queue,
        memory.queue_ptr,
        keys,
        momentum=memory.slot_momentum,
        backend=memory.backend,
    )
