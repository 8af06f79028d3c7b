"""State of a FIFO memory, rows and projections: construction, checks, loading and saving."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rrd_kernels import validation as check
from rrd_kernels.bounds import UNIT_SLACK
from rrd_kernels.distributed.agreement import Standing, Step
from rrd_kernels.distributed.ddp import check_ddp, ignore_in_ddp
from rrd_kernels.distributed.gradients import Averaging
from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings
from rrd_kernels.fifo.dtensor import as_dtensor, own_rows
from rrd_kernels.fifo.shard import Shard
from rrd_kernels.fifo.start import ROWS_AT_ONCE, STARTS, draw_rows
from rrd_kernels.settings import alias, choice, number

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class FifoState(Embeddings):
    """State of a :class:`rrd_kernels.FifoMemory` or :class:`rrd_kernels.RelationalQueue`, which
    document arguments and attributes."""

    #: What a user calls K, for errors.
    SIZE = "nce_k"

    queue: Tensor
    queue_ptr: Tensor

    tau_s = number("tau_s", check.check_temperature, "Student temperature.")
    slot_momentum = number("slot_momentum", check.check_momentum, "Weight of a slot's old row.")
    nce_t_s, nce_t_t = alias("tau_s"), alias("tau_t")  # as published
    divergence = choice("divergence", check.DIVERGENCES)
    precision = choice("precision", (None, *check.PRECISIONS))
    backend = choice("backend", check.BACKENDS)

    @torch.inference_mode(False)  # as in Settings._apply
    def __init__(
        self,
        s_dim: int | None = None,
        t_dim: int | None = None,
        feat_dim: int = 128,
        size: int = 16384,
        *,
        tau_s: float = 0.1,
        tau_t: float = 0.02,
        own_pair: bool = False,
        divergence: str = "cross_entropy",
        embed_s: nn.Module | None = None,
        embed_t: nn.Module | None = None,
        enqueue: str = "before",
        newest_first: bool = False,
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
        check.check_choice("start", start, STARTS)
        check.check_momentum("slot_momentum", slot_momentum)
        check.check_temperature("tau_s", tau_s)
        check.check_flag("own_pair", own_pair)
        check.check_target("tau_t", tau_t, own_pair)
        check.check_choice("divergence", divergence, check.DIVERGENCES)
        check.check_order(enqueue, own_pair)
        check.check_flag("newest_first", newest_first)
        check.check_formats(precision, backend, memory_dtype)
        ranks = Ranks(gather, process_group)
        shards = gather == "shard"
        shard = Shard(int(size), ranks.count if shards else 1, ranks.rank if shards else 0)
        shard.check()
        super().__init__(
            s_dim, t_dim, feat_dim, embed_s=embed_s, embed_t=embed_t, device=device, dtype=dtype
        )
        self._own_pair, self._newest_first = own_pair, newest_first
        self.tau_s, self.tau_t = tau_s, tau_t
        self.divergence = divergence
        self.ranks = ranks
        self.shard = shard
        self.standing = Standing.STALE  # until the ranks have compared memories
        # With gather="shard" ranks hold different rows, so they compare these two counts instead.
        self.states_loaded = self.batches_written = 0
        self.enqueue = enqueue
        self.slot_momentum = slot_momentum
        self.precision = precision
        self.backend = backend
        rows = draw_rows(shard, feat_dim, start, device=device, dtype=dtype)
        self.register_buffer("queue", rows.to(dtype=memory_dtype))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64, device=device))
        self.averaging = Averaging()
        ignore_in_ddp(self)
        self.unit_memory = False
        self._inspected = False
        self.inspect_rows()

    @property
    def tau_t(self) -> float:
        """Teacher temperature; 0, with ``own_pair``, for the hard target."""
        return self._numbers["tau_t"]

    @tau_t.setter
    def tau_t(self, value: float) -> None:
        check.check_target("tau_t", value, self._own_pair)
        self.set_number("tau_t", float(value))

    @property
    def enqueue(self) -> str:
        """Whether a batch enters the memory "before" or "after" its similarities are computed."""
        return self._enqueue

    @enqueue.setter
    def enqueue(self, value: str) -> None:
        check.check_order(value, self._own_pair)
        self._enqueue = value

    @property
    def own_pair(self) -> bool:
        """Whether the teacher's own row is a column beside the memory's rows."""
        return self._own_pair

    @property
    def newest_first(self) -> bool:
        """Whether the ring of slots grows downwards."""
        return self._newest_first

    @property
    def nce_k(self) -> int:
        """Rows K of the memory."""
        return self.shard.size if self.shard.ranks > 1 else self.queue.shape[0]

    def inspect_rows(self) -> None:
        """Sets ``unit_memory`` from the norm of every row; one host sync on a GPU."""
        # load_state_dict inspects them again.
        if check.has_values(self.queue):
            # In parts: vector_norm copies its input to compute in another dtype.
            parts = self.queue.split(ROWS_AT_ONCE)
            norms = [torch.linalg.vector_norm(p, dim=1, dtype=self._norm_dtype()) for p in parts]
            self.unit_memory = bool((torch.cat(norms) <= 1 + UNIT_SLACK).all())
            self._inspected = True

    def _norm_dtype(self) -> torch.dtype:
        return torch.promote_types(self.queue.dtype, torch.float32)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.unwrap_keys_(state_dict, prefix)
        may_be = self.unit_memory or not self._inspected
        *_, errors = args
        refused = len(errors)
        ptr = state_dict.get(f"{prefix}queue_ptr")
        if isinstance(ptr, Tensor) and ptr.is_floating_point():  # which rounds a slot's number
            raise ValueError(
                f"queue_ptr must be int64; the state_dict has {ptr.dtype}. Load a state that was "
                f"not cast to another dtype"
            )
        if (key := f"{prefix}queue") in state_dict:
            # A new dict, so that the caller's keeps the entry as it was.
            state_dict = {**state_dict, key: own_rows(state_dict[key], self.shard)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if key in state_dict and len(errors) == refused:
            self.states_loaded, self.batches_written = self.states_loaded + 1, 0
        self.inspect_rows()
        self.unit_memory = self.unit_memory and may_be
        self.standing = Standing.STALE

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.shard.ranks > 1:
            rows = destination[f"{prefix}queue"]
            destination[f"{prefix}queue"] = as_dtensor(rows, self.shard, self.ranks)

    def embed(self, f_s: Tensor, f_t: Tensor, update: bool) -> tuple[Tensor, Tensor, bool]:
        """Checks and projects the features; returns z_s, z_t and whether z_t enters the memory."""
        self.shard.check_ranks(self.ranks)
        check_ddp(self, self.ranks)
        if self.training and update:
            self.refuse_replica()
        if self.training and self.ranks.count > 1:
            self.ranks.refuse_shared(self.queue)
            self.averaging.begin_step(self, self.ranks)
        writes = self.recomputations.may_write(self.training and update, self.enqueue)
        queue = self.queue
        self.check_features(f_s, f_t, queue.device)
        if writes and f_s.shape[0] > self.nce_k and not self._newest_first:
            raise ValueError(
                f"a batch of {f_s.shape[0]} rows does not fit a memory of {self.nce_k} rows; "
                f"make the memory ({self.SIZE}) larger"
            )
        return *self.project(f_s, f_t, queue), writes

    def that_fit(self, keys: Tensor) -> Tensor:
        """The keys [B, D] that enter the memory. Of more than K, the first K, which a queue that
        shifts keeps too; without ``newest_first`` so many are refused before."""
        return keys[: self.nce_k] if len(keys) > self.nce_k else keys

    def check_fits(self, step: Step, writes: bool) -> None:
        """Raises if the step writes the batches of all ranks and they do not fit the memory."""
        if writes and step.batch > self.nce_k and not self._newest_first:
            raise ValueError(
                f"batches of {step.batches} rows on {len(step.batches)} ranks do not fit a memory "
                f"of {self.nce_k} rows; make the memory ({self.SIZE}) larger"
            )

    def extra_repr(self) -> str:
        return f"size={self.nce_k}, feat_dim={self.queue.shape[1]}, enqueue={self.enqueue!r}"
