"""DistributedDataParallel and the memories' buffers.

DDP copies every buffer from rank 0 to the other ranks at each forward, unless the module that it
wraps names it in ``_ddp_params_and_buffers_to_ignore``. For a memory this copy is useless at best
(all ranks hold the same rows), and at worst it destroys each rank's own rows.
"""

import warnings

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings


def ignore_in_ddp(module: nn.Module) -> nn.Module:
    """Makes DDP leave the buffers of all memories in ``module`` alone.

    :class:`rrd_kernels.RRDLoss` and the memories call this themselves. Call it for a module of your
    own that contains one, before DDP wraps it: DDP reads the names from the wrapped module only.
    Where you wrap, the call can be DDP's argument. Where a framework wraps, as Lightning does, call
    ``ignore_in_ddp(self)`` as the last line of the module's ``__init__``, or of Lightning's
    ``configure_model`` if that makes the criterion.

    The call is required with ``gather="shard"`` and ``"none"``, and where DDP spans more ranks than
    share a memory. Without it, DDP's constructor and forward overwrite each rank's own rows before
    the memory's forward can raise, or abort the process if the ranks' parts are uneven. Overwritten
    rows are lost; load them again.

    Args:
        module: any module that holds its criterion already; names that it lists are kept.

    Returns:
        ``module``, so that the call can be DDP's argument.

    Source: DistributedDataParallel, which reads ``_ddp_params_and_buffers_to_ignore``.

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
            named += [prefix + name for name, _ in child.named_rows()]
    module._ddp_params_and_buffers_to_ignore = list(dict.fromkeys(named))  # type: ignore[assignment]
    return module


def refuse_join(ranks: Ranks) -> None:
    """Raises inside ``join()``: every step on a shared memory needs all of its ranks.

    Each rank checks by itself: one without batches left takes no part in exchanges.

    Raises:
        RuntimeError: the running DDP allows ranks different numbers of steps.
    """
    active = DistributedDataParallel._active_ddp_module
    if active is not None and ranks.count > 1 and active._join_config.enable:
        raise RuntimeError(
            "DistributedDataParallel.join() is for ranks with different numbers of steps, and a "
            "memory that ranks share needs all of them at each: give every rank as many batches, "
            "some of them empty, or gather='none'"
        )


def check_ddp(memory: Embeddings, ranks: Ranks) -> None:
    """Checks that the running DDP, if any, does not copy this memory's buffers.

    Args:
        memory: the memory whose forward runs.
        ranks: the ranks that share it. Where DDP's ranks have equal copies, it warns only.

    Raises:
        RuntimeError: DDP overwrites buffers that differ between its ranks.
    """
    active = DistributedDataParallel._active_ddp_module
    if active is None or ranks.count == 1 or not active.broadcast_buffers:
        return
    copied = {id(buffer) for buffer in active.modules_buffers}
    if copied.isdisjoint(id(buffer) for _, buffer in memory.named_rows()):
        return
    advice = (
        "wrap DistributedDataParallel(rrd_kernels.distributed.ignore_in_ddp(module)); where a "
        "framework such as Lightning wraps your module, call ignore_in_ddp(self) in the module "
        "instead, after the line that makes the criterion"
    )
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
