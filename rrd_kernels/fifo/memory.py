"""The FIFO memory of earlier teacher embeddings, as a module."""

from torch import Tensor

from rrd_kernels.fifo.step import FifoStep
from rrd_kernels.validation import Number


class FifoMemory(FifoStep):
    """The last K teacher embeddings, and the projections of student and teacher features.

    Args:
        s_dim: width of the student's features. Required without ``embed_s``.
        t_dim: width of the teacher's features. Required without ``embed_t``.
        feat_dim: width D of the embeddings. Default 128.
        size: rows K. Default 16384.
        tau_s: student temperature, positive. Default 0.1.
        tau_t: teacher temperature, positive. Default 0.02. With ``own_pair`` it may be 0, the hard
            target.
        own_pair, divergence: as in :func:`rrd_kernels.functional.relational_loss`.
        embed_s, embed_t: as in :class:`rrd_kernels.RRDLoss`.
        enqueue: whether a batch's teacher rows enter the memory ``"before"`` (default) or
            ``"after"`` its similarities are computed.
        newest_first, start: as in :class:`rrd_kernels.RelationalQueue`. Default: ``False``, and
            ``"published"``, normal deviates with each column normalised, so that a row's norm is
            about sqrt(D / K).
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
        divergence, enqueue, precision, backend: likewise.
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
        return self.step(f_s, f_t, tau_s, tau_t, update)
