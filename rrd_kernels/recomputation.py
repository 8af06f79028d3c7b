"""Forwards that activation checkpointing runs a second time."""

import torch


def may_write(update: bool, enqueue: str) -> bool:
    """Whether a training forward is to write its batch into the memory.

    Autograd runs a forward itself for one reason: ``torch.utils.checkpoint`` recomputes it. The
    memory has the batch by then, so nothing is written.

    Args:
        update: what the caller wants.
        enqueue: whether the batch enters ``"before"`` or ``"after"`` the similarities are taken.

    Raises:
        RuntimeError: a recomputation of a loss that was taken ``"before"`` the memory changed: it
            would differentiate another loss than the one that was returned.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return update
    if update and enqueue == "after":
        raise RuntimeError(
            "torch.utils.checkpoint recomputes a loss whose memory has changed since; call the "
            "criterion outside of the function that is checkpointed, or with update=False"
        )
    return False
