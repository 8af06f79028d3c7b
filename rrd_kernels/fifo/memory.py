"""The FIFO memory of earlier teacher embeddings: parameters and buffers, nothing numeric."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.bounds import UNIT_SLACK
from rrd_kernels.distributed.agreement import Standing, Step
from rrd_kernels.distributed.ddp import check_ddp, ignore_in_ddp
from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings
from rrd_kernels.fifo import functional
from rrd_kernels.fifo.distributed import keys_step
from rrd_kernels.fifo.dtensor import as_dtensor, own_rows
from rrd_kernels.fifo.shard import ROWS_AT_ONCE, Layout, draw_rows
from rrd_kernels.fifo.shard_step import shard_step, warm_up_shard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

STARTS = ("published", "unit")


class FifoMemory(Embeddings):
    """The last K teacher embeddings, and the projections that lead to them.

    Args:
        s_dim: width of the student's features.
        t_dim: width of the teacher's features.
        feat_dim: width D of the embeddings. Default 128.
        size: rows K. Default 16384.
        enqueue: whether a batch's teacher rows enter ``"before"`` (default) or ``"after"`` its
            similarities are taken.
        start: the first content: ``"published"`` (default), normal deviates normalised over the
            rows, so that a row's norm is about sqrt(D / K); or ``"unit"``, each row of norm 1.
        slot_momentum: how much of a slot stays when it is written, in [0, 1). Default 0.
        precision, backend: as in :func:`rrd_kernels.functional.relational_loss`.
        device, dtype: as in :class:`torch.nn.Linear`.
        memory_dtype: what the rows are stored in: float64, float32, bfloat16 or float16. Default:
            ``dtype``. They are drawn in ``dtype`` whatever it is.
        process_group, gather: as in :class:`rrd_kernels.RRDLoss`.

    Attributes:
        embed_s: Linear(s_dim, feat_dim), trained.
        embed_t: Linear(t_dim, feat_dim), without gradient.
        queue: [K, D] buffer; with ``gather="shard"`` this rank's rows of it, and in the state_dict
            a DTensor of all.
        queue_ptr: int64 [1] buffer, the next slot.
        unit_rows: whether every row's norm is at most 1, so that the bounded softmax applies.
            Looked at when the memory is made and when a state is loaded, which can make it false
            and not true again: a resumed training then rounds as the unbroken one does. Where it
            has become untrue since, results stay right, at the price of a second pass; with
            ``gather="shard"`` the loss is then no number.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Shapes: called as ``memory(f_s, f_t, tau_s=..., tau_t=...)`` with [B, s_dim] and [B, t_dim]
    features (or [B, dim, 1, 1]) of float64, float32, bfloat16 or float16, 1 <= B <= K in training;
    returns the mean loss, a scalar: float64 with float64 products, else float32.

    Source: the published FIFO memory of arXiv 2407.12073.

    Example:
        >>> import torch
        >>> from rrd_kernels import FifoMemory
        >>> memory = FifoMemory(s_dim=64, t_dim=256, feat_dim=128, size=4096)
        >>> memory(torch.randn(32, 64), torch.randn(32, 256), tau_s=0.1, tau_t=0.02).shape
        torch.Size([])
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        s_dim: int,
        t_dim: int,
        feat_dim: int = 128,
        size: int = 16384,
        *,
        enqueue: str = "before",
        start: str = "published",
        slot_momentum: float = 0.0,
        precision: str | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory_dtype: torch.dtype | None = None,
        process_group: "ProcessGroup | None" = None,
        gather: str = "keys",
    ) -> None:
        check.check_size("size", size)
        check.check_choice("enqueue", enqueue, check.ENQUEUES)
        check.check_choice("start", start, STARTS)
        check.check_momentum("slot_momentum", slot_momentum)
        check.check_choice("backend", backend, check.BACKENDS)
        check.check_numbers(precision, memory_dtype)
        ranks = Ranks(gather, process_group)
        shards = gather == "shard"
        layout = Layout(size, ranks.size if shards else 1, ranks.rank if shards else 0)
        layout.check()
        super().__init__(s_dim, t_dim, feat_dim, device=device, dtype=dtype)
        self.ranks = ranks
        self.layout = layout
        self.standing = Standing.STALE  # until the ranks have compared
        # Of a part that no other rank has: what the ranks compare in its stead.
        self.states_loaded = self.batches_written = 0
        self.enqueue_order = enqueue
        self.slot_momentum = slot_momentum
        self.precision = precision
        self.backend = backend
        rows = draw_rows(layout, feat_dim, start, device=device, dtype=dtype)
        self.register_buffer("queue", rows.to(dtype=memory_dtype))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64, device=device))
        ignore_in_ddp(self)
        self.unit_rows = False
        self._inspected = False
        self.inspect_rows()

    def inspect_rows(self) -> None:
        """Looks at every row and sets ``unit_rows``; one host sync on a GPU."""
        # Meta and fake tensors have no rows to look at; what fills them later looks again.
        if not self.queue.is_meta and type(self.queue).__name__ != "FakeTensor":
            # Some at a time: in another dtype the norm makes a copy of its rows.
            parts = self.queue.split(ROWS_AT_ONCE)
            norms = [torch.linalg.vector_norm(p, dim=1, dtype=self._norm_dtype()) for p in parts]
            self.unit_rows = bool((torch.cat(norms) <= 1 + UNIT_SLACK).all())
            self._inspected = True

    def _norm_dtype(self) -> torch.dtype:
        return torch.promote_types(self.queue.dtype, torch.float32)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        may_be = self.unit_rows or not self._inspected
        *_, errors = args
        refused = len(errors)
        if (key := f"{prefix}queue") in state_dict:
            # load_state_dict hands out a copy of the user's dict.
            state_dict = {**state_dict, key: own_rows(state_dict[key], self.layout)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if key in state_dict and len(errors) == refused:
            self.states_loaded, self.batches_written = self.states_loaded + 1, 0
        self.inspect_rows()
        self.unit_rows = self.unit_rows and may_be
        self.standing = Standing.STALE

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.layout.ranks > 1:
            rows = destination[f"{prefix}queue"]
            destination[f"{prefix}queue"] = as_dtensor(rows, self.layout, self.ranks)

    def forward(
        self,
        f_s: Tensor,
        f_t: Tensor,
        idx: Tensor | None = None,
        contrast_idx: Tensor | None = None,
        *,
        tau_s: float,
        tau_t: float,
        update: bool = True,
    ) -> Tensor:
        """The loss of [B, s_dim] student against [B, t_dim] teacher features, a scalar.

        In training mode the teacher's rows enter the memory, unless ``update`` is false. ``idx``
        and ``contrast_idx`` are not used; they make all memories callable alike.
        """
        settings: dict[str, Any] = {
            "tau_s": tau_s,
            "tau_t": tau_t,
            "unit_memory": self.unit_rows,
            "precision": self.precision,
            "backend": self.backend,
        }
        prepare = functools.partial(self._prepare, f_s, f_t, update)
        if self.ranks.size > 1 and self.ranks.gather == "keys" and self.training:
            return keys_step(self, prepare, settings)
        if self.ranks.size > 1 and self.ranks.gather == "shard":
            return shard_step(self, prepare, settings)
        z_s, z_t, writes = prepare()
        if not writes:
            return functional.relational_loss(z_s, z_t, self.queue, **settings)
        return functional.relational_step_(
            z_s,
            z_t,
            self.queue,
            self.queue_ptr,
            enqueue=self.enqueue_order,
            momentum=self.slot_momentum,
            **settings,
        )

    def _prepare(self, f_s: Tensor, f_t: Tensor, update: bool) -> tuple[Tensor, Tensor, bool]:
        """The embeddings of features that are checked here, and whether they are to enter."""
        self.ranks.check_layout(self.layout)
        check_ddp(self, self.ranks)
        writes = self.recomputations.may_write(self.training and update, self.enqueue_order)
        self.check_features(f_s, f_t, self.queue.device)
        if writes and f_s.shape[0] > self.layout.size:
            raise ValueError(
                f"a batch of {f_s.shape[0]} does not fit a memory of {self.layout.size} rows; "
                f"make the memory (nce_k) larger"
            )
        return *self.project(f_s, f_t), writes

    def check_fits(self, step: Step, writes: bool) -> None:
        """The batches of all ranks fit the memory, where they are to enter it."""
        if writes and step.batch > self.layout.size:
            raise ValueError(
                f"batches of {step.batches} rows on {len(step.batches)} ranks do not fit a memory "
                f"of {self.layout.size} rows; make the memory (nce_k) larger"
            )

    def warmup(
        self, batch_size: int, *, tau_s: float, tau_t: float, dtype: torch.dtype | None = None
    ) -> None:
        """Compiles what batches of this size will need; see :func:`functional.warmup`.

        Args:
            batch_size: B.
            tau_s, tau_t: the temperatures that will be given.
            dtype: of the projected embeddings; default: the weights', give autocast's under it.
        """
        dtype = dtype or self.embed_s.weight.dtype
        if self.layout.ranks > 1:
            warm_up_shard(self, batch_size, tau_s, tau_t, dtype)
            return
        functional.warmup(
            batch_size,
            *self.queue.shape,
            dtype=dtype,
            memory_dtype=self.queue.dtype,
            tau_s=tau_s,
            tau_t=tau_t,
            enqueue=self.enqueue_order,
            momentum=self.slot_momentum,
            unit_memory=self.unit_rows,
            precision=self.precision,
            device=self.queue.device,
        )

    def extra_repr(self) -> str:
        return (
            f"size={self.layout.size}, feat_dim={self.queue.shape[1]}, "
            f"enqueue={self.enqueue_order!r}"
        )
