"""Forwards that activation checkpointing runs a second time."""

import torch
from torch import Tensor

from rrd_kernels.extension import EXTENSION_ERROR

_CHANGED = (
    "torch.utils.checkpoint recomputes a loss whose memory has changed since; call the criterion "
    "outside of the function that is checkpointed, or with update=False"
)


class Recomputations:
    """Those of one memory's forwards, as far as Python runs: the latest written batch may have one,
    if it was written inside a checkpoint."""

    def __init__(self) -> None:
        self._latest_may_repeat = False

    def may_write(self, update: bool, enqueue: str, written: Tensor | None = None) -> bool:
        """As :func:`may_write`, which says what the arguments are.

        Raises:
            RuntimeError: as there, and at a recomputation of another batch than the latest that was
                written, since which the memory has changed; or at the latest's second one.
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
    """Whether the forward that runs may be repeated: its tensors are saved by hooks, or, as a
    reentrant checkpoint has it, not at all."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None or not torch.is_grad_enabled()


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
