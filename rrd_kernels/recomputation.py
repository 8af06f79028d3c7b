"""Forwards that activation checkpointing runs a second time."""

import torch
from torch import Tensor

from rrd_kernels.ops import EXTENSION_ERROR

_CHANGED = (
    "torch.utils.checkpoint recomputes a loss whose memory has changed since; call the criterion "
    "outside of the function that is checkpointed, or with update=False"
)


class Recomputations:
    """Those of one memory's forwards, as far as Python runs: each written batch has one at most."""

    def __init__(self) -> None:
        self._latest_repeated = False

    def may_write(self, update: bool, enqueue: str, written: Tensor | None = None) -> bool:
        """As :func:`may_write`, which says what the arguments are.

        Raises:
            RuntimeError: as there, and at the second recomputation since a batch was written. One
                of the two is of an earlier batch, of which the memory has changed since.
        """
        writes = may_write(update, enqueue, written)
        if torch.compiler.is_compiling() or not update:
            return writes
        if not writes and self._latest_repeated:
            raise RuntimeError(f"{_CHANGED}; each forward needs its backward before the next")
        self._latest_repeated = not writes
        return writes


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
        raise RuntimeError(_CHANGED)
    return False
