"""CRDLoss: the drop-in replacement for RepDistiller's class of the same name."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rrd_kernels import validation as check
from rrd_kernels.momentum.contrastive import sampled_contrastive_loss
from rrd_kernels.momentum.state import Views
from rrd_kernels.momentum.step import MomentumStep
from rrd_kernels.opt import Published
from rrd_kernels.settings import MeanLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Projection(nn.Module):
    """A linear layer under its published name, ``linear``, for features of any shape [B, ...]."""

    def __init__(self, width: int, feat_dim: int, **options: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(width, feat_dim, **options)

    def forward(self, features: Tensor) -> Tensor:
        embedding: Tensor = self.linear(features.flatten(1))
        return embedding


class CRDLoss(MomentumStep, MeanLoss):
    """Contrastive Representation Distillation: a drop-in for the published ``CRDLoss(opt)``.

    Compares student and teacher with a momentum memory, as :class:`rrd_kernels.MomentumMemory`
    does, by :func:`rrd_kernels.functional.sampled_contrastive_loss`. Settings come from ``opt``,
    under their published names, or from keywords. Keywords win.

    Both projections are trained: give ``criterion.parameters()`` to the optimizer too.

    Args:
        opt: any object with the attributes ``s_dim``, ``t_dim``, ``feat_dim``, ``n_data``,
            ``nce_k``, ``nce_t`` and ``nce_m``. Nothing else is read from it.
        s_dim: width of the student's features. Required, here or in ``opt``, without ``embed_s``.
        t_dim: width of the teacher's features. Required, here or in ``opt``, without ``embed_t``.
        feat_dim: width D of the embeddings. Default 128.
        n_data: number of training samples, and so of rows in each memory. Required.
        nce_k: K, the number of negatives drawn for each sample. Default 16384.
        nce_t: temperature T, positive. Default 0.07.
        nce_m: weight of the old row in an update, in [0, 1). Default 0.5.
        embed_s, embed_t: the projections: modules that map [B, s_dim] and [B, t_dim] to
            [B, feat_dim]. They are used as they are, on their own device. Default: a module whose
            only layer, ``linear``, is an ``nn.Linear``, as published; it does not normalise. For a
            teacher's projection that is not trained, give one whose parameters have
            ``requires_grad=False``.
        precision, method, backend: as in
            :func:`rrd_kernels.functional.sampled_relational_loss`.
        generator, memory_dtype: as in :class:`rrd_kernels.MomentumMemory`.
        device, dtype: as in :class:`torch.nn.Linear`.
        process_group, gather: as in :class:`rrd_kernels.MomentumMemory`.

    Attributes:
        embed_s, embed_t: the projections. Another module may be assigned.
        nce_k, nce_t, nce_m: settings; may be changed between steps.
        contrast: the module of the rows and constants, as in :class:`rrd_kernels.MomentumMemory`. A
            loaded state replaces K, nce_t and nce_m, as in the published code.

    Shapes: ``criterion(f_s, f_t, idx, contrast_idx=None)`` takes [B, s_dim] and [B, t_dim] features
    (or [B, dim, 1, 1]) of any floating dtype, and two tensors of any integer dtype. ``idx`` [B]
    holds the samples' dataset indices: their rows are updated after the loss. ``contrast_idx``
    [B, K + 1] holds the sampled columns, the positive first. Without it, the positive is the
    sample's own row, and the negatives are drawn uniformly, with replacement and of any class. The
    call returns the mean loss, a scalar: float64 with float64 products, else float32.

    The state_dict has the published keys, in both directions. Equal seeds give the published start.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range. No state is made
            or changed then. Several ranks: as :class:`rrd_kernels.RRDLoss`.

    Source: arXiv 1910.10699 and its published code, RepDistiller.

    Example:
        >>> import torch
        >>> from rrd_kernels import CRDLoss
        >>> criterion = CRDLoss(s_dim=64, t_dim=256, n_data=50000, nce_k=1024)
        >>> optimizer = torch.optim.SGD(criterion.parameters(), lr=0.05)
        >>> f_s, f_t, idx = torch.randn(32, 64), torch.randn(32, 256), torch.arange(32)
        >>> criterion(f_s, f_t, idx).backward()
        >>> optimizer.step()
    """

    TRAINED = ("embed_s", "embed_t")

    def __init__(
        self,
        opt: object | None = None,
        *,
        s_dim: int | None = None,
        t_dim: int | None = None,
        feat_dim: int | None = None,
        n_data: int | None = None,
        nce_k: int | None = None,
        nce_t: float | None = None,
        nce_m: float | None = None,
        embed_s: nn.Module | None = None,
        embed_t: nn.Module | None = None,
        precision: str | None = None,
        method: str = "auto",
        backend: str = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory_dtype: torch.dtype | None = None,
        process_group: "ProcessGroup | None" = None,
        gather: str = "keys",
    ) -> None:
        setting = Published(opt).setting
        size = setting("nce_k", nce_k, 16384)
        check.check_size("nce_k", size)
        super().__init__(
            setting("s_dim", s_dim, needed=embed_s is None),
            setting("t_dim", t_dim, needed=embed_t is None),
            setting("feat_dim", feat_dim, 128),
            size,
            n_data=setting("n_data", n_data),
            nce_t=setting("nce_t", nce_t, 0.07),
            nce_m=setting("nce_m", nce_m, 0.5),
            embed_s=embed_s,
            embed_t=embed_t,
            precision=precision,
            method=method,
            backend=backend,
            generator=generator,
            device=device,
            dtype=dtype,
            memory_dtype=memory_dtype,
            process_group=process_group,
            gather=gather,
        )

    def make_projection(self, width: int, feat_dim: int, **options: Any) -> nn.Module:
        return Projection(width, feat_dim, **options)

    def forward(
        self,
        f_s: Tensor,
        f_t: Tensor,
        idx: Tensor | None = None,
        contrast_idx: Tensor | None = None,
        *,
        update: bool = True,
    ) -> Tensor:
        """Returns the mean loss of student features [B, s_dim] and teacher features [B, t_dim].

        In training mode, unless ``update`` is false, the first batch sets Z, and every batch
        updates its samples' rows of both memories after the loss. Otherwise nothing changes, and a
        Z that is not set yet is estimated from the batch for this call.
        """
        return self.step(f_s, f_t, idx, contrast_idx, update)

    def warmup(self, batch_size: int, *, dtype: torch.dtype | None = None) -> None:
        """Compiles the kernels for batches of this size, before training or graph capture.

        The memories do not change. Without a warmup the first step compiles.

        Args:
            batch_size: B, at least 1.
            dtype: dtype of the projected embeddings. Under autocast give autocast's dtype. Default:
                that of the weights of ``embed_s``.
        """
        self.compile_kernels(batch_size, dtype)

    def loss(self, views: Views, normalizers: Tensor | None, **temperatures: Any) -> Tensor:
        assert normalizers is not None
        return sampled_contrastive_loss(
            *views,
            normalizers,
            nce_t=self.contrast.number("nce_t"),
            precision=self.precision,
            method=self.method,
            backend=self.backend,
        )
