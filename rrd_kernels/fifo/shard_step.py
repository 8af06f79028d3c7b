"""A step on a FIFO memory that is spread over ranks by rows.

Every rank compares the embeddings of all ranks with its own rows of the memory. The sums are then
added over ranks, and each rank receives those of its own samples.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels import validation as check
from rrd_kernels.bounds import fits_float32
from rrd_kernels.distributed.agreement import Standing, Step
from rrd_kernels.distributed.collectives import copy_from, gather_rows, scatter_sums
from rrd_kernels.extension import use_fused
from rrd_kernels.fifo import functional, partials
from rrd_kernels.fifo.distributed import begin
from rrd_kernels.fifo.state import FifoState
from rrd_kernels.momentum.functional import momentum_update_


@torch._disable_dynamo  # as for keys_step
def shard_step(
    memory: FifoState,
    embed: Callable[[], tuple[Tensor, Tensor, bool]],
    settings: dict[str, Any],
) -> Tensor:
    """The loss of this rank's samples against the memory rows of all ranks. The teacher rows of all
    ranks enter the memory, each on the rank that holds its slot.

    Args, Returns, Raises: as :func:`rrd_kernels.fifo.distributed.keys_step`.
    """
    ranks, settings = memory.ranks, check.floats(settings)
    step, z_s, z_t, writes = begin(memory, embed, settings)
    if step.stale:
        copy_from(ranks, step.source, (memory.queue_ptr,))
    if step.batch == 0:
        memory.standing = Standing.ALIKE
        return functional.relational_loss(z_s, z_t, memory.queue, **settings)
    embeddings = gather_rows(ranks, torch.cat((z_s, z_t), 1), step.batches).wait()
    all_z_s, all_z_t = embeddings.chunk(2, dim=1)
    if writes and memory.enqueue == "before":
        enqueue_(memory, all_z_t)
    loss = _loss(memory, (z_s, z_t), (all_z_s, all_z_t), step, settings)
    if writes and memory.enqueue == "after":
        enqueue_(memory, all_z_t)
    memory.standing = Standing.ALIKE
    return step.weighted(loss, ranks.rank) if memory.training else loss


def _loss(
    memory: FifoState,
    own_rows: tuple[Tensor, Tensor],
    all_rows: tuple[Tensor, Tensor],
    step: Step,
    settings: dict[str, Any],
) -> Tensor:
    """The mean over this rank's samples; rows are those of the student and of the teacher."""
    ranks, (z_s, z_t) = memory.ranks, own_rows
    bounded = step.unit_memory and _holds(memory, settings)
    terms = {name: settings[name] for name in ("tau_s", "tau_t", "divergence")}
    sums, shifts = partials.relational_partials(
        *all_rows,
        memory.queue,
        need_grad=step.needs_grad,
        unit_memory=bounded,
        precision=settings["precision"],
        backend=settings["backend"],
        **terms,
    )
    # The shift common to all ranks: zero for bounded logits, without an all-reduce. If the promise
    # of unit rows was broken, this rescales the sums; if it overflows, the loss is not finite.
    common = torch.zeros_like(shifts)
    if not bounded:
        common = shifts.clone()
        dist.all_reduce(common, dist.ReduceOp.MAX, group=ranks.group)
    own = scatter_sums(ranks, reference.rescaled(sums, shifts, common), step.batches)
    first = sum(step.batches[: ranks.rank])
    return partials.loss_of_partials(
        z_s,
        own,
        common[first : first + len(z_s)],
        z_t=z_t,
        own_pair=settings["own_pair"],
        **terms,
    )


def _holds(memory: FifoState, settings: dict[str, Any]) -> bool:
    """Whether float32 holds unshifted sums over all ranks' rows, if these are unit rows."""
    taus = [tau for tau in (settings["tau_s"], settings["tau_t"]) if tau != 0]
    return all(fits_float32(tau, memory.shard.size) for tau in taus)


def enqueue_(memory: FifoState, keys: Tensor) -> None:
    """Enqueues ``keys`` [B, D], the rows of all ranks: writes those whose slots this rank holds and
    moves the pointer. No host sync on a GPU with fused kernels."""
    shard, ptr, keys = memory.shard, memory.queue_ptr, memory.that_fit(keys)
    if memory.newest_first:
        ptr.sub_(len(keys))
    slots = torch.arange(len(keys), device=ptr.device).add_(ptr).remainder_(shard.size)
    here = slots - shard.first
    inside = (here >= 0) & (here < shard.rows)
    if keys.device.type != "cpu" and use_fused(memory.backend, keys.device):
        here = torch.where(inside, here, -1)  # which the fused kernels do not write
    else:
        here, keys = here[inside], keys[inside]
    momentum_update_(memory.queue, here, keys, memory.slot_momentum, backend=memory.backend)
    ptr.add_(0 if memory.newest_first else len(slots)).remainder_(shard.size)
    memory.batches_written += 1


def warm_up_shard(
    memory: FifoState, batch: int, tau_s: float, tau_t: float, dtype: torch.dtype
) -> None:
    """Compiles, on this rank alone, the kernels for steps of ``batch`` samples on each rank."""
    check.check_size("batch_size", batch)
    rows = memory.queue
    z = rows.new_zeros((batch * memory.shard.ranks, rows.shape[1]), dtype=dtype)
    settings: dict[str, Any] = {
        "tau_s": tau_s,
        "tau_t": tau_t,
        "divergence": memory.divergence,
        "precision": memory.precision,
    }
    bounded = memory.unit_memory and _holds(memory, settings)
    for need_grad in (True, False):
        partials.relational_partials(
            z, z, rows, need_grad=need_grad, unit_memory=bounded, **settings
        )
    nowhere = torch.zeros(1, dtype=torch.int64, device=rows.device)
    momentum_update_(rows[:1].clone(), nowhere, z[:1], memory.slot_momentum)
