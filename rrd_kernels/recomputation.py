"""Forwards that activation checkpointing runs a second time."""

import torch
from torch import Tensor

from rrd_kernels.extension import EXTENSION_ERROR

_CHANGED = (
    "torch.utils.checkpoint recomputes a loss whose memory has changed since; call the criterion "
    "outside the checkpointed function, or with update=False. A forward inside backward, as in a "
    "gradient hook, counts as a recomputation"
)


class Recomputations:
    """Tracks the recomputed forwards of one memory in eager code. Only the latest written batch may
    be recomputed, once, and only if it was written inside a checkpoint."""

    def __init__(self) -> None:
        self._latest_may_repeat = False

    def may_write(self, update: bool, enqueue: str, written: Tensor | None = None) -> bool:
        """Returns :func:`may_write`, which documents the arguments, with one more check.

        Raises:
            RuntimeError: as there; also if the recomputed batch is not the latest written one,
                since the memory has changed, or is recomputed a second time.
        """
        writes = may_write(update, enqueue, written)
        if torch.compiler.is_compiling() or not update:
            return writes
        if not writes and not self._latest_may_repeat:
            raise RuntimeError(
                f"{_CHANGED}; each forward needs its one backward before the next forward"
            )
        self._latest_may_repeat = writes and _inside_a_checkpoint()
        return writes


def _inside_a_checkpoint() -> bool:
    """Whether the running forward may be recomputed. A non-reentrant checkpoint saves tensors
    through hooks; a reentrant one disables gradients."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None or not torch.is_grad_enabled()


def may_write(update: bool, enqueue: str, written: Tensor | None = None) -> bool:
    """Whether a training forward writes its batch into the memory.

    A forward that runs inside backward is a recomputation by ``torch.utils.checkpoint``. The memory
    already holds the batch then, so nothing is written.

    A compiled graph cannot ask Python at run time, so its operators check (csrc/recomputation.h):
    ``relational_step_`` itself, and ``refuse_recomputation_`` before operators without a check.

    Args:
        update: whether the caller wants the batch written.
        enqueue: whether the batch enters ``"before"`` or ``"after"`` the similarities are taken.
        written: tensor written after the loss by an operator without a check. Default: none.

    Raises:
        RuntimeError: a recomputation where the batch entered ``"after"``: the memory has changed
            since, so that it would differentiate another loss than the one returned.
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
