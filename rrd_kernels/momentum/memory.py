"""The momentum memory as a module: a student and a teacher row for each training sample."""

import functools

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.embeddings import dtype_of
from rrd_kernels.momentum import functional
from rrd_kernels.momentum.distributed import shared_step
from rrd_kernels.momentum.state import MomentumState


class MomentumMemory(MomentumState):
    """A student row and a teacher row for each training sample, updated with momentum.

    The student is compared with teacher rows, and the teacher with student rows, at sampled
    columns. The first column is the sample itself.

    Args:
        s_dim: width of the student's features. Required without ``embed_s``.
        t_dim: width of the teacher's features. Required without ``embed_t``.
        feat_dim: width D of the embeddings. Default 128.
        size: K, the number of negatives drawn for each sample. Default 16384.
        n_data: number of training samples, and so of rows in each memory. Required.
        tau_s: student temperature, positive. Default 0.1.
        tau_t: teacher temperature, positive. Default 0.02.
        embed_s, embed_t: as in :class:`rrd_kernels.RRDLoss`.
        nce_t: temperature T of the published similarity, positive. Default 0.07.
        nce_m: weight of the old row in an update, in [0, 1). Default 0.5.
        similarity: ``"exponential"`` (default), the published ``exp(s.m / T) / Z``, or
            ``"cosine"``, ``s.m`` itself. With ``"exponential"`` the loss stays near log(K + 1)
            until a student's row is almost its teacher's, and then falls to zero.
        precision, method, backend: as in
            :func:`rrd_kernels.functional.sampled_relational_loss`.
        generator: generator for the negatives that the memory draws. Its state is not in the
            state_dict, and ``torch.compile(fullgraph=True)`` does not take one. Default: the
            device's own.
        device, dtype: as in :class:`torch.nn.Linear`.
        memory_dtype: dtype of the stored rows: float64, float32, bfloat16 or float16. Default:
            ``dtype``. The initial rows are always drawn in ``dtype``.
        process_group: as in :class:`rrd_kernels.RRDLoss`. Each rank draws the negatives of its own
            samples: seed each rank's draws differently.
        gather: as in :class:`rrd_kernels.RRDLoss`, without ``"shard"``, which is for FIFO memories.

    Attributes:
        embed_s: the student's projection. Another module may be assigned.
        embed_t: the teacher's projection, without a gradient. Another module may be assigned.
        tau_s: student temperature; may be changed between steps.
        tau_t: teacher temperature; may be changed between steps.
        nce_t: temperature T of the similarity; may be changed between steps.
        nce_m: weight of the old row; may be changed between steps.
        size: K, the number of negatives drawn; may be changed between steps.
        contrast: the module of the rows and constants: buffers ``memory_v1`` and ``memory_v2``,
            [n_data, D], and ``params``, [5], with K, nce_t, Z_v1, Z_v2 and nce_m. A loaded state
            replaces K, nce_t and nce_m, as in the published code.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Shapes: ``memory(f_s, f_t, idx, contrast_idx)`` takes [B, s_dim] and [B, t_dim] features (or
    [B, dim, 1, 1]) of any floating dtype, and two tensors of any integer dtype. ``idx`` [B] holds
    the samples' dataset indices. ``contrast_idx`` [B, P] holds the sampled columns; they are drawn
    if it is not given. The call returns the mean loss, a scalar: float64 with float64 products,
    else float32.

    Source: the published momentum memory of arXiv 2407.12073.

    Example:
        >>> import torch
        >>> from rrd_kernels import MomentumMemory
        >>> memory = MomentumMemory(s_dim=64, t_dim=256, size=1024, n_data=50000)
        >>> f_s, f_t, idx = torch.randn(32, 64), torch.randn(32, 256), torch.arange(32)
        >>> memory(f_s, f_t, idx).shape
        torch.Size([])
    """

    def forward(
        self,
        f_s: Tensor,
        f_t: Tensor,
        idx: Tensor | None = None,
        contrast_idx: Tensor | None = None,
        *,
        tau_s: check.Number | None = None,
        tau_t: check.Number | None = None,
        update: bool = True,
    ) -> Tensor:
        """Returns the mean loss of student features [B, s_dim] and teacher features [B, t_dim].

        In training mode, unless ``update`` is false, the first batch sets Z, and every batch
        updates its samples' rows of both memories after the loss. Otherwise nothing changes, and a
        Z that is not set yet is estimated from the batch for this call. ``tau_s`` and ``tau_t``
        default to the memory's.
        """
        tau_s = self.number("tau_s") if tau_s is None else tau_s
        tau_t = self.number("tau_t") if tau_t is None else tau_t
        embed = functools.partial(self.embed, f_s, f_t, idx, contrast_idx, update)
        if self.ranks.count > 1 and self.ranks.gather == "keys" and self.training:
            return shared_step(self, embed, tau_s, tau_t, draws=contrast_idx is None)
        check.check_temperature("tau_s", tau_s)
        check.check_temperature("tau_t", tau_t)
        samples, views, writes = embed()
        rows = self.contrast
        same = rows.unchanged()
        normalizers = self.normalizers(writes, views)
        loss = self.loss(views, normalizers, tau_s, tau_t)
        if writes:
            self.move_rows(samples, *views[:2])
        rows.mark_read()
        return loss if same is None else torch.where(same, loss, torch.nan)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def warmup(
        self,
        batch_size: int,
        *,
        tau_s: float | None = None,
        tau_t: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Compiles the kernels for batches of this size. The memories do not change.

        Args:
            batch_size: B, at least 1.
            tau_s, tau_t: temperatures of the later calls. Default: the memory's.
            dtype: dtype of the projected embeddings. Under autocast give autocast's dtype. Default:
                that of the weights of ``embed_s``.
        """
        check.check_size("batch_size", batch_size)
        tau_s = self.tau_s if tau_s is None else tau_s
        tau_t = self.tau_t if tau_t is None else tau_t
        rows = self.contrast
        device = rows.params.device
        dtype = dtype or dtype_of(self.embed_s) or rows.memory_v1.dtype
        z_s, z_t = torch.zeros(2, batch_size, rows.memory_v1.shape[1], dtype=dtype, device=device)
        contrast_idx = torch.zeros(batch_size, rows.size + 1, dtype=torch.int64, device=device)
        for need_grad in (True, False):
            leaf = z_s.detach().requires_grad_(need_grad)
            views = (leaf, z_t, rows.memory_v1, rows.memory_v2, contrast_idx)
            normalizers = None
            if self.similarity == "exponential":
                normalizers = torch.full_like(rows.params[2:4], -1)
                functional.estimate_normalizers_(
                    normalizers, *views, nce_t=rows.nce_t, backend=self.backend
                )
            loss = self.loss(views, normalizers, tau_s, tau_t)
            if need_grad:
                torch.autograd.grad(loss, leaf)
        few = rows.memory_v1[:1].clone()
        index = torch.zeros(batch_size, dtype=torch.int64, device=device)
        functional.momentum_update_(few, index, z_t, rows.nce_m, backend=self.backend)
