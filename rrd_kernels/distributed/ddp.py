"""DistributedDataParallel and the memories' buffers.

DDP copies every buffer from rank 0 to the other ranks at each forward, unless the module that it
wraps names it in ``_ddp_params_and_buffers_to_ignore``. For a memory that is a waste at best (all
ranks have it already) and at worst the loss of each rank's own rows.
"""

import warnings

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings


def ignore_in_ddp(module: nn.Module) -> nn.Module:
    """Names the buffers of all memories in ``module`` as ones that DDP is to leave alone.

    :class:`rrd_kernels.RRDLoss` and the memories have it done. It is for a module of your own that
    holds one, before it is wrapped: DDP asks only the module that it is given. With
    ``gather="shard"`` and ``"none"``, and where DDP spans more ranks than share a memory, it is
    required: DDP's constructor and its forward overwrite each rank's own rows before the forward
    here can say so, or end the process where the ranks' parts are uneven. What was overwritten is
    lost; load it again.

    Args:
        module: any; what it named before stays named.

    Returns:
        ``module``, so that the call can stand inside that of DDP.

    Source: ``torch.nn.parallel.DistributedDataParallel``, which reads that attribute.

    Example:
        >>> from rrd_kernels import RRDLoss
        >>> both = torch.nn.ModuleDict({"rrd": RRDLoss(s_dim=4, t_dim=4, feat_dim=8, nce_k=16)})
        >>> ignore_in_ddp(both)._ddp_params_and_buffers_to_ignore
        ['rrd.memory.queue', 'rrd.memory.queue_ptr']
    """
    named = list(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    for path, child in module.named_modules():
        if isinstance(child, Embeddings):
            prefix = f"{path}." if path else ""
            named += [prefix + name for name, _ in child.named_buffers()]
    module._ddp_params_and_buffers_to_ignore = list(dict.fromkeys(named))  # type: ignore[assignment]
    return module


def refuse_join(ranks: Ranks) -> None:
    """Ranks that share a memory all take the steps that are taken.

    Each rank finds this by itself: one that has run out of batches would not hear of it.

    Raises:
        RuntimeError: the DDP that is running lets them take different numbers of steps.
    """
    active = DistributedDataParallel._active_ddp_module
    if active is not None and ranks.size > 1 and active._join_config.enable:
        raise RuntimeError(
            "DistributedDataParallel.join() is for ranks with different numbers of steps, and a "
            "memory that ranks share needs all of them at each: give every rank as many batches, "
            "some of them empty, or gather='none'"
        )


def check_ddp(memory: Embeddings, ranks: Ranks) -> None:
    """The DDP that is running, if any is, leaves this memory's buffers alone.

    Args:
        memory: whose forward this is.
        ranks: what they share. Buffers that are the same on all of DDP's are copied in vain.

    Raises:
        RuntimeError: buffers that are not the same are copied.
    """
    active = DistributedDataParallel._active_ddp_module
    if active is None or ranks.size == 1 or not active.broadcast_buffers:
        return
    copied = {id(buffer) for buffer in active.modules_buffers}
    if copied.isdisjoint(id(buffer) for buffer in memory.buffers()):
        return
    advice = "wrap DistributedDataParallel(rrd_kernels.distributed.ignore_in_ddp(module))"
    sharing = dist.get_process_group_ranks(ranks.group or dist.group.WORLD)
    everyone = dist.get_process_group_ranks(active.process_group)
    if ranks.gather != "keys" or not set(everyone) <= set(sharing):
        raise RuntimeError(
            f"DistributedDataParallel copies rank 0's memory over the other ranks' at each step: "
            f"{advice}"
        )
    warnings.warn(
        f"DistributedDataParallel copies the memory from rank 0 at each step, which changes "
        f"nothing and takes time: {advice}",
        stacklevel=2,
    )
