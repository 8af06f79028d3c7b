"""What the losses with a momentum memory share: rows and projections, checks, a step, updates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rrd_kernels import reference, transforms
from rrd_kernels import validation as check
from rrd_kernels.distributed.agreement import Standing
from rrd_kernels.distributed.ddp import check_ddp, ignore_in_ddp
from rrd_kernels.distributed.gradients import Averaging
from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings
from rrd_kernels.momentum import functional
from rrd_kernels.momentum.negatives import draw_contrast_idx
from rrd_kernels.momentum.rows import MomentumRows, check_state
from rrd_kernels.settings import alias, choice

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: z_s, z_t, memory_v1, memory_v2, contrast_idx
Views = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class MomentumState(Embeddings):
    """A module with a momentum memory. :class:`rrd_kernels.MomentumMemory` documents the arguments,
    and the subclass adds the loss."""

    method = choice("method", check.METHODS)
    precision = choice("precision", (None, *check.PRECISIONS))
    backend = choice("backend", check.BACKENDS)
    nce_k = size = alias("size", "contrast")
    nce_t = alias("nce_t", "contrast")
    nce_m = alias("nce_m", "contrast")

    @torch.inference_mode(False)  # as in Settings._apply
    def __init__(
        self,
        s_dim: int | None,
        t_dim: int | None,
        feat_dim: int,
        size: int,
        *,
        n_data: int,
        embed_s: nn.Module | None,
        embed_t: nn.Module | None,
        nce_t: float,
        nce_m: float,
        precision: str | None,
        method: str,
        backend: str,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        memory_dtype: torch.dtype | None,
        process_group: "ProcessGroup | None",
        gather: str,
    ) -> None:
        check.check_size("size", size)
        check.check_size("n_data", n_data)
        check.check_temperature("nce_t", nce_t)
        check.check_momentum("nce_m", nce_m)
        check.check_choice("method", method, check.METHODS)
        check.check_formats(precision, backend, memory_dtype)
        ranks = Ranks(gather, process_group)
        if gather == "shard":
            raise ValueError(
                "the momentum memory cannot be spread over ranks: gather='shard' is for a queue, "
                "as memory_type='fifo' has; use gather='keys' or 'none', and "
                "memory_dtype=torch.bfloat16 to halve its rows"
            )
        super().__init__(
            s_dim, t_dim, feat_dim, embed_s=embed_s, embed_t=embed_t, device=device, dtype=dtype
        )
        self.ranks = ranks
        self.method = method
        self.precision, self.backend = precision, backend
        self.generator = generator
        self.contrast = MomentumRows(
            n_data,
            feat_dim,
            size,
            nce_t,
            nce_m,
            device=device,
            dtype=dtype,
            memory_dtype=memory_dtype,
        )
        self.averaging = Averaging()
        ignore_in_ddp(self)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.unwrap_keys_(state_dict, prefix)
        check_state(state_dict, f"{prefix}contrast.params")  # the projections are copied first
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def n_data(self) -> int:
        """Rows of each memory."""
        return self.contrast.memory_v1.shape[0]

    def embed(
        self,
        f_s: Tensor,
        f_t: Tensor,
        idx: Tensor | None,
        contrast_idx: Tensor | None,
        update: bool,
    ) -> tuple[Tensor, Views, bool]:
        """Checks the arguments and projects the features; returns the samples' indices, the inputs
        of the loss, and whether the samples' rows are updated."""
        rows = self.contrast
        copied = self.ranks.gather == "keys" and self.ranks.count > 1
        if not copied or rows.standing == Standing.ALIKE:  # else params is another rank's soon
            rows.refresh()
        check_ddp(self, self.ranks)
        memory_v1, memory_v2 = rows.memory_v1, rows.memory_v2
        if self.training and update:
            self.refuse_replica()
            check.check_writable("memory_v1", memory_v1)
            check.check_writable("memory_v2", memory_v2)
        if self.training and self.ranks.count > 1:
            self.ranks.refuse_shared(memory_v2)
            self.averaging.begin_step(self, self.ranks)
        writes = self.recomputations.may_write(
            self.training and update, "after", written=rows.params
        )
        self.check_features(f_s, f_t, memory_v1.device)
        if idx is None:
            raise ValueError(
                "the momentum memory needs idx, the dataset indices of the batch's samples, int "
                "[B]; got None"
            )
        idx = check.check_index("idx", idx, f_s, dims=1)
        check.check_range("idx", idx, self.n_data, " = n_data")
        if contrast_idx is None:
            contrast_idx = self.draw(idx)
        contrast_idx = check.check_index("contrast_idx", contrast_idx, f_s, dims=2)
        z_s, z_t = self.project(f_s, f_t, memory_v2)
        if writes and transforms.are_running():
            transforms.plain(z_s), transforms.plain(z_t)  # before the first of the two memories
        return idx, (z_s, z_t, memory_v1, memory_v2, contrast_idx), writes

    def draw(self, idx: Tensor) -> Tensor:
        """The sampled columns int64 [B, K + 1] of ``idx`` [B]: the sample itself, then K draws."""
        return draw_contrast_idx(idx, self.n_data, self.contrast.size, generator=self.generator)

    def stored_normalizers(self, writes: bool) -> Tensor | None:
        """(Z_v1, Z_v2), as a copy unless ``writes``; ``None`` for a loss without them."""
        stored = self.contrast.params[2:4]
        return stored if writes else stored.clone()

    def normalizers(self, writes: bool, views: Views) -> Tensor | None:
        """(Z_v1, Z_v2) as ``stored_normalizers``, estimated from these views where they are not
        set yet."""
        normalizers, nce_t = self.stored_normalizers(writes), self.contrast.number("nce_t")
        if normalizers is None:
            return None
        if not writes and transforms.are_running():  # vmap may give each sample its own
            return reference.estimated_normalizers(normalizers, views, nce_t)
        functional.estimate_normalizers_(normalizers, *views, nce_t=nce_t, backend=self.backend)
        return normalizers

    def move_rows(self, idx: Tensor, z_s: Tensor, z_t: Tensor) -> None:
        """Moves the rows ``idx`` of both memories towards ``z_s`` and ``z_t`` [B, D]."""
        rows = self.contrast
        (z_t,) = reference.apart(rows.memory_v1, z_t)  # which is written first
        for memory, new in ((rows.memory_v1, z_s), (rows.memory_v2, z_t)):
            functional.momentum_update_(
                memory, idx, new.detach(), rows.number("nce_m"), backend=self.backend
            )

    def loss(self, views: Views, normalizers: Tensor | None, **temperatures: Any) -> Tensor:
        """The mean loss with these normalizers, a scalar."""
        raise NotImplementedError

    def alike(self) -> dict[str, object]:
        """Settings that must be equal on ranks that share the memory, under their names."""
        return {
            "n_data": self.n_data,
            "(nce_k, nce_t, nce_m)": self.contrast.given,
            "dict of numbers set since construction": self.contrast.scheduled,
            "feat_dim": self.contrast.memory_v1.shape[1],
            "memory_dtype": self.contrast.memory_v1.dtype,
            "precision": self.precision,
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        return (
            f"size={self.contrast.size}, n_data={self.n_data}, "
            f"feat_dim={self.contrast.memory_v1.shape[1]}"
        )
