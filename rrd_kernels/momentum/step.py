"""A training step on a momentum memory, whichever loss reads it."""

import functools

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.embeddings import dtype_of
from rrd_kernels.momentum import functional
from rrd_kernels.momentum.distributed import shared_step
from rrd_kernels.momentum.state import MomentumState


class MomentumStep(MomentumState):
    """Computes the loss of a batch, then updates its samples' rows of both memories."""

    def step(
        self,
        f_s: Tensor,
        f_t: Tensor,
        idx: Tensor | None,
        contrast_idx: Tensor | None,
        update: bool,
        **temperatures: check.Number,
    ) -> Tensor:
        """The mean loss of student features [B, s_dim] and teacher features [B, t_dim].

        ``temperatures`` are those of the loss. In training mode, unless ``update`` is false, the
        first batch sets Z, and every batch updates its samples' rows of both memories after the
        loss. Otherwise nothing changes, and a Z that is not set yet is estimated from the batch for
        this call.
        """
        embed = functools.partial(self.embed, f_s, f_t, idx, contrast_idx, update)
        if self.ranks.count > 1 and self.ranks.gather == "keys" and self.training:
            return shared_step(self, embed, temperatures, draws=contrast_idx is None)
        for name, value in temperatures.items():
            check.check_temperature(name, value)
        samples, views, writes = embed()
        rows = self.contrast
        same = rows.unchanged()
        normalizers = self.normalizers(writes, views)
        loss = self.loss(views, normalizers, **temperatures)
        if writes:
            self.move_rows(samples, *views[:2])
        rows.mark_read()
        return loss if same is None else torch.where(same, loss, torch.nan)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def compile_kernels(
        self, batch_size: int, dtype: torch.dtype | None, **temperatures: check.Number
    ) -> None:
        """Compiles the kernels for batches of this size; see the subclasses' ``warmup``."""
        check.check_size("batch_size", batch_size)
        rows = self.contrast
        device = rows.params.device
        dtype = dtype or dtype_of(self.embed_s) or rows.memory_v1.dtype
        z = torch.zeros(2, batch_size, rows.memory_v1.shape[1], dtype=dtype, device=device)
        contrast_idx = torch.zeros(batch_size, rows.size + 1, dtype=torch.int64, device=device)
        trained = [
            any(w.requires_grad for w in m.parameters()) for m in (self.embed_s, self.embed_t)
        ]
        for need_grads in ([True, trained[1]], [False, False]):
            leaves = [
                z_v.clone().requires_grad_(need) for z_v, need in zip(z, need_grads, strict=True)
            ]
            views = (*leaves, rows.memory_v1, rows.memory_v2, contrast_idx)
            normalizers = self.stored_normalizers(False)
            if normalizers is not None:
                functional.estimate_normalizers_(
                    normalizers.fill_(-1), *views, nce_t=rows.nce_t, backend=self.backend
                )
            loss = self.loss(views, normalizers, **temperatures)
            if loss.requires_grad:
                torch.autograd.backward(loss)
        few = rows.memory_v1[:1].clone()
        index = torch.zeros(batch_size, dtype=torch.int64, device=device)
        functional.momentum_update_(few, index, z[1], rows.nce_m, backend=self.backend)
