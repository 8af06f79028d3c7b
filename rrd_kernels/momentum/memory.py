"""The momentum memory as a module: a student and a teacher row for each training sample."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rrd_kernels import validation as check
from rrd_kernels.momentum import functional
from rrd_kernels.momentum.state import Views
from rrd_kernels.momentum.step import MomentumStep
from rrd_kernels.settings import alias, choice, number

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MomentumMemory(MomentumStep):
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

    tau_s = number("tau_s", check.check_temperature, "Student temperature.")
    tau_t = number("tau_t", check.check_temperature, "Teacher temperature.")
    nce_t_s, nce_t_t = alias("tau_s"), alias("tau_t")  # as published
    similarity = choice("similarity", check.SIMILARITIES)

    @torch.inference_mode(False)  # as in Settings._apply
    def __init__(
        self,
        s_dim: int | None = None,
        t_dim: int | None = None,
        feat_dim: int = 128,
        size: int = 16384,
        *,
        n_data: int,
        tau_s: float = 0.1,
        tau_t: float = 0.02,
        embed_s: nn.Module | None = None,
        embed_t: nn.Module | None = None,
        nce_t: float = 0.07,
        nce_m: float = 0.5,
        similarity: str = "exponential",
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
        check.check_temperature("tau_s", tau_s)
        check.check_temperature("tau_t", tau_t)
        check.check_choice("similarity", similarity, check.SIMILARITIES)
        super().__init__(
            s_dim,
            t_dim,
            feat_dim,
            size,
            n_data=n_data,
            nce_t=nce_t,
            nce_m=nce_m,
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
        self.tau_s, self.tau_t = tau_s, tau_t
        self.similarity = similarity

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
        return self.step(f_s, f_t, idx, contrast_idx, update, tau_s=tau_s, tau_t=tau_t)

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
        tau_s = self.tau_s if tau_s is None else tau_s
        tau_t = self.tau_t if tau_t is None else tau_t
        self.compile_kernels(batch_size, dtype, tau_s=tau_s, tau_t=tau_t)

    def stored_normalizers(self, writes: bool) -> Tensor | None:
        return super().stored_normalizers(writes) if self.similarity == "exponential" else None

    def loss(self, views: Views, normalizers: Tensor | None, **temperatures: Any) -> Tensor:
        return functional.sampled_relational_loss(
            *views,
            normalizers,
            **temperatures,
            nce_t=self.contrast.number("nce_t"),
            precision=self.precision,
            method=self.method,
            backend=self.backend,
        )

    def alike(self) -> dict[str, object]:
        return {"memory_type": "momentum", "similarity": self.similarity} | super().alike()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, similarity={self.similarity!r}"
