"""Forwards that activation checkpointing runs a second time."""

import torch
from torch import Tensor

from rrd_kernels.ops import EXTENSION_ERROR


def may_write(update: bool, enqueue: str, written: Tensor | None = None) -> bool:
    """Whether a training forward is to write its batch into the memory.

    Autograd runs a forward itself for one reason: ``torch.utils.checkpoint`` recomputes it. The
    memory has the batch by then, so nothing is written.

    A graph of ``torch.compile`` cannot ask this when it runs. There the operators do, for which see
    csrc/recomputation.h: ``relational_step_`` of itself, and one that asks before others.

    Args:
        update: what the caller wants.
        enqueue: whether the batch enters ``"before"`` or ``"after"`` the similarities are taken.
        written: what is written after the loss by an operator that does not ask itself, if any is.

    Raises:
        RuntimeError: a recomputation of a loss that was taken ``"before"`` the memory changed: it
            would differentiate another loss than the one that was returned.
    """
    if torch.compiler.is_compiling():
        if update and written is not None and EXTENSION_ERROR is None:
            torch.ops.rrd_kernels.refuse_recomputation_(written)
        return update
    if torch._C._current_graph_task_id() == -1:
        return update
    if update and enqueue == "after":
        raise RuntimeError(
            "torch.utils.checkpoint recomputes a loss whose memory has changed since; call the "
            "criterion outside of the function that is checkpointed, or with update=False"
        )
    return False
