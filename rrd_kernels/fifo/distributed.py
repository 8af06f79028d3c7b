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

_OF_THE_MEMORY = ("enqueue", "newest_first", "slot_momentum", "training")
_OF_THE_STEP = ("tau_s", "tau_t", "own_pair", "divergence", "precision", "backend")


def _alike(memory: FifoState, settings: dict[str, Any], z_s: Tensor, z_t: Tensor) -> dict[str, Any]:
    """Settings that must be equal on all ranks, under the names used in errors."""
    return {
        "gather": memory.ranks.gather,
        "memory_type": "fifo",
        "feat_dim": memory.queue.shape[1],
        "memory_dtype": memory.queue.dtype,
        "dtype of z_s": z_s.dtype,
        "dtype of z_t": z_t.dtype,
        **{name: getattr(memory, name) for name in _OF_THE_MEMORY},
        **{name: settings[name] for name in _OF_THE_STEP},
    }


def begin(
    memory: FifoState,
    embed: Callable[[], tuple[Tensor, Tensor, bool]],
    settings: dict[str, Any],
) -> tuple[Step, Tensor, Tensor, bool]:
    """Agrees with all ranks on a step; returns the step and what ``embed`` returned here.

    A memory that the step writes is UNFINISHED from here until the step's end. If a rank fails in
    between, for example out of memory, it copies another rank's memory at the next step. A
    recomputation may never reach the end, but it writes nothing, so it is not marked.

    Args, Raises: as :func:`keys_step`.
    """
    embedded: list[tuple[Tensor, Tensor, bool]] = []

    def share() -> Share:
        # Raise now: the functions below would raise only after the ranks have agreed.
        check.check_temperature("tau_s", settings["tau_s"])
        check.check_target("tau_t", settings["tau_t"], memory.own_pair)
        use_fused(memory.backend, memory.queue.device)
        if memory.ranks.are_others() and memory.standing == Standing.ALIKE:
            memory.standing = Standing.STALE
        embedded.append(embed())
        z_s, z_t, writes = embedded[0]
        alike = _alike(memory, settings, z_s, z_t)
        alike |= {"nce_k": memory.nce_k, "update": writes}
        if memory.ranks.gather == "shard":  # no rank can copy another's rows
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


@torch._disable_dynamo  # control flow depends on what the ranks exchange
def keys_step(
    memory: FifoState,
    embed: Callable[[], tuple[Tensor, Tensor, bool]],
    settings: dict[str, Any],
) -> Tensor:
    """The loss of this rank's samples; the teacher rows of all ranks enter every rank's memory.

    Args:
        memory: the memory; written.
        embed: checks and projects this rank's input; returns z_s and z_t [B, D], and whether the
            batch enters the memory.
        settings: keyword arguments of :func:`rrd_kernels.functional.relational_loss`.

    Returns:
        The mean over this rank's samples, weighted as :meth:`Step.weighted` does.

    Raises:
        RuntimeError, ValueError: as :func:`rrd_kernels.distributed.agreement.agree`; and a
            ValueError where the ranks' batches together do not fit the memory.
    """
    ranks, settings = memory.ranks, check.floats(settings)
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
        enqueue_(memory, gathering.wait())  # gathered while the loss ran
    memory.standing = Standing.ALIKE
    return step.weighted(loss, ranks.rank)


def enqueue_(memory: FifoState, keys: Tensor) -> None:
    """Enqueues ``keys`` [B, D], the gathered rows of all ranks; see :meth:`FifoState.that_fit`."""
    functional.enqueue_(
        memory.queue,
        memory.queue_ptr,
        memory.that_fit(keys),
        newest_first=memory.newest_first,
        momentum=memory.slot_momentum,
        backend=memory.backend,
    )
