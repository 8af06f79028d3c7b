"""The loss of lightly that compares with a memory bank, under lightly's name.

The change in a script is the import::

    from rrd_kernels.integrations.lightly import NTXentLoss
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rrd_kernels import validation as check
from rrd_kernels.fifo.queue import RelationalQueue
from rrd_kernels.settings import alias

__all__ = ["NTXentLoss"]


class _Bank(RelationalQueue):
    """A queue with lightly's names in errors, which loads a state without one, as lightly's are."""

    INPUTS = ("out0", "out1")
    SIZE = "memory_bank_size"

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        _, _, missing, *_ = args
        own = [f"{prefix}queue", f"{prefix}queue_ptr"]
        if set(own) <= set(missing):
            missing[:] = [name for name in missing if name not in own]
            warnings.warn(
                f"the state has no {own[0]!r}, as lightly's have none: the bank keeps the rows "
                f"that it has, random ones if it is new, until training has replaced them",
                stacklevel=5,  # the call of load_state_dict
            )


class NTXentLoss(nn.Module):
    """InfoNCE of a query against its key and a bank of earlier keys, as in MoCo.

    In place of ``lightly.loss.NTXentLoss`` with a memory bank. A seed gives the same bank.

    Args:
        temperature: positive. Default 0.5.
        memory_bank_size: K rows and width D, ``(K, D)``. The default, 0, is SimCLR's loss over the
            batch, and refused.
        gather_distributed: whether the keys of all ranks enter the bank, which is then the same on
            each. Default ``False``: each rank has a bank of its own keys.
        settings: keywords of :class:`rrd_kernels.RelationalQueue` that lightly does not have, for
            example ``precision`` or ``dtype``.

    Attributes:
        temperature: may be changed between steps.
        memory_bank: the :class:`rrd_kernels.RelationalQueue`. Its ``queue`` is lightly's
            ``memory_bank.bank``, its ``queue_ptr`` lightly's ``memory_bank.bank_ptr``. Both are in
            the state_dict; lightly's are not.

    Shapes: ``criterion(out0, out1)`` takes queries and keys [B, D], normalised or not, of float64,
    float32, bfloat16 or float16, with B <= K in training. It returns the mean loss, a scalar. Only
    ``out0`` receives a gradient.

    The keys enter the bank after the loss if ``out0`` requires a gradient, as in lightly, and the
    criterion is in training mode, which lightly ignores. At the end of the bank the rows continue
    at row 0, where lightly drops those that do not fit.

    A state without a bank, as lightly writes, loads with a warning.

    Raises:
        TypeError, ValueError: as :class:`rrd_kernels.RelationalQueue`; or there is no bank; or
            ``out1`` requires a gradient, which lightly would give it.

    Source: lightly 1.6.0, ``lightly/loss/ntx_ent_loss.py`` and
    ``lightly/models/modules/memory_bank.py``.

    Example:
        >>> import torch
        >>> criterion = NTXentLoss(memory_bank_size=(4096, 128))
        >>> query, key = torch.randn(32, 128, requires_grad=True), torch.randn(32, 128)
        >>> criterion(query, key).backward()
        >>> criterion.memory_bank.queue_ptr
        tensor([32])
    """

    temperature = alias("tau_s", "memory_bank")

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        check.check_temperature("temperature", temperature)
        check.check_flag("gather_distributed", gather_distributed)
        size, dim = _shape(memory_bank_size)
        gather = "keys" if gather_distributed else "none"
        own: dict[str, Any] = {"tau_s": temperature, "tau_t": 0.0, "own_pair": True}
        self.memory_bank = _Bank(dim, size, gather=gather, **own, **settings)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Returns the mean loss of queries ``out0`` and keys ``out1`` [B, D]."""
        if out1.requires_grad:
            raise ValueError(
                "out1 requires a gradient, which lightly.loss.NTXentLoss computes and this class "
                "does not. With a momentum encoder detach it: criterion(out0, out1.detach())"
            )
        return self.memory_bank(out0, out1, update=out0.requires_grad)


def _shape(memory_bank_size: int | Sequence[int]) -> tuple[int, int]:
    """The size and width of a bank, or an error that says which class is without one."""
    given = tuple(
        memory_bank_size if isinstance(memory_bank_size, Sequence) else [memory_bank_size]
    )
    if given[:1] == (0,):
        raise ValueError(
            f"memory_bank_size is {memory_bank_size}: without a bank this is SimCLR's loss over "
            f"the batch, which this package does not have; use lightly.loss.NTXentLoss"
        )
    if len(given) != 2:
        raise ValueError(f"memory_bank_size must be (rows, width); got {memory_bank_size}")
    size, dim = given
    check.check_size("memory_bank_size", size)
    return size, dim
