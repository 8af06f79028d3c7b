"""The FIFO memory of earlier teacher embeddings, as a module."""

import functools
from typing import Any

import torch
from torch import Tensor

from rrd_kernels.embeddings import dtype_of
from rrd_kernels.fifo import functional
from rrd_kernels.fifo.distributed import keys_step
from rrd_kernels.fifo.shard_step import shard_step, warm_up_shard
from rrd_kernels.fifo.state import FifoState
from rrd_kernels.validation import Number


class FifoMemory(FifoState):
    """The last K teacher embeddings, and the projections of student and teacher features.

    Args:
        s_dim: width of the student's features. Required without ``embed_s``.
        t_dim: width of the teacher's features. Required without ``embed_t``.
        feat_dim: width D of the embeddings. Default 128.
        size: rows K. Default 16384.
        tau_s: student temperature, positive. Default 0.1.
        tau_t: teacher temperature, positive. Default 0.02.
        embed_s, embed_t: as in :class:`rrd_kernels.RRDLoss`.
        enqueue: whether a batch's teacher rows enter the memory ``"before"`` (default) or
            ``"after"`` its similarities are computed.
        start: the initial rows. ``"published"`` (default): normal deviates with each column
            normalised, so that a row's norm is about sqrt(D / K). ``"unit"``: rows of norm 1.
        slot_momentum: weight of the old row when a slot is written, in [0, 1). Default 0.
        precision, backend: as in :func:`rrd_kernels.functional.relational_loss`.
        device, dtype: as in :class:`torch.nn.Linear`.
        memory_dtype: dtype of the stored rows: float64, float32, bfloat16 or float16. Default:
            ``dtype``. The initial rows are always drawn in ``dtype``.
        process_group, gather: as in :class:`rrd_kernels.RRDLoss`.

    Attributes:
        embed_s: the student's projection. Another module may be assigned.
        embed_t: the teacher's projection, without a gradient. Another module may be assigned.
        tau_s: student temperature; may be changed between steps.
        tau_t: teacher temperature; may be changed between steps.
        slot_momentum: weight of the old row; may be changed between steps.
        queue: [K, D] buffer, the rows. With ``gather="shard"`` it holds this rank's rows only, and
            the state_dict has a DTensor of all K rows.
        queue_ptr: int64 [1] buffer, the next slot.
        unit_memory: whether every row's norm is at most 1, so that the bounded softmax applies.
            Set from the rows at construction. Loading a state, or copying another rank's, can make
            it false but never true again: a resumed training then rounds as an uninterrupted one
            does. If a longer row is written later, results stay right but cost a second pass. With
            ``gather="shard"`` the loss is then not finite where float32 overflows.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Shapes: ``memory(f_s, f_t)`` takes [B, s_dim] and [B, t_dim] features (or [B, dim, 1, 1]) of
    float64, float32, bfloat16 or float16, with 1 <= B <= K in training. It returns the mean loss, a
    scalar: float64 with float64 products, else float32.

    Source: the published FIFO memory of arXiv 2407.12073.

    Example:
        >>> import torch
        >>> from rrd_kernels import FifoMemory
        >>> memory = FifoMemory(s_dim=64, t_dim=256, feat_dim=128, size=4096)
        >>> memory(torch.randn(32, 64), torch.randn(32, 256)).shape
        torch.Size([])
    """

    def forward(
        self,
        f_s: Tensor,
        f_t: Tensor,
        idx: Tensor | None = None,
        contrast_idx: Tensor | None = None,
        *,
        tau_s: Number | None = None,
        tau_t: Number | None = None,
        update: bool = True,
    ) -> Tensor:
        """Returns the mean loss of student features [B, s_dim] and teacher features [B, t_dim].

        In training mode the teacher's rows enter the memory, unless ``update`` is false. ``idx``
        and ``contrast_idx`` are ignored; they give both memories the same signature. ``tau_s`` and
        ``tau_t`` default to the memory's.
        """
        settings: dict[str, Any] = {
            "tau_s": self.number("tau_s") if tau_s is None else tau_s,
            "tau_t": self.number("tau_t") if tau_t is None else tau_t,
            "unit_memory": self.unit_memory,
            "precision": self.precision,
            "backend": self.backend,
        }
        embed = functools.partial(self.embed, f_s, f_t, update)
        if self.ranks.count > 1 and self.ranks.gather == "keys" and self.training:
            return keys_step(self, embed, settings)
        if self.ranks.count > 1 and self.ranks.gather == "shard":
            return shard_step(self, embed, settings)
        z_s, z_t, _ = embed()
        # Not whether it writes: a recomputation must call the operator that the forward called.
        if not (self.training and update):
            return functional.relational_loss(z_s, z_t, self.queue, **settings)
        return functional.relational_step_(
            z_s,
            z_t,
            self.queue,
            self.queue_ptr,
            enqueue=self.enqueue,
            momentum=self.number("slot_momentum"),
            **settings,
        )

    def warmup(
        self,
        batch_size: int,
        *,
        tau_s: float | None = None,
        tau_t: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Compiles the kernels for batches of this size.

        See :func:`rrd_kernels.functional.warmup`. The memory does not change.

        Args:
            batch_size: B, at least 1.
            tau_s, tau_t: temperatures of the later calls. Default: the memory's.
            dtype: dtype of the projected embeddings. Under autocast give autocast's dtype. Default:
                that of the weights of ``embed_s``.
        """
        dtype = dtype or dtype_of(self.embed_s) or self.queue.dtype
        tau_s = self.tau_s if tau_s is None else tau_s
        tau_t = self.tau_t if tau_t is None else tau_t
        if self.shard.ranks > 1:
            warm_up_shard(self, batch_size, tau_s, tau_t, dtype)
            return
        functional.warmup(
            batch_size,
            *self.queue.shape,
            dtype=dtype,
            memory_dtype=self.queue.dtype,
            tau_s=tau_s,
            tau_t=tau_t,
            enqueue=self.enqueue,
            momentum=self.slot_momentum,
            unit_memory=self.unit_memory,
            precision=self.precision,
            device=self.queue.device,
        )
