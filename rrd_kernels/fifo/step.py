"""The step of a FIFO memory: alone, or with the ranks that share it."""

import functools
from typing import Any

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels import validation as check
from rrd_kernels.embeddings import dtype_of
from rrd_kernels.fifo import functional
from rrd_kernels.fifo.distributed import enqueue_, keys_step
from rrd_kernels.fifo.shard_step import shard_step, warm_up_shard
from rrd_kernels.fifo.state import FifoState
from rrd_kernels.validation import Number


class FifoStep(FifoState):
    """What :class:`rrd_kernels.FifoMemory` and :class:`rrd_kernels.RelationalQueue` do alike."""

    def step(
        self, f_s: Tensor, f_t: Tensor, tau_s: Number | None, tau_t: Number | None, update: bool
    ) -> Tensor:
        """Returns the mean loss. In training mode the teacher's rows enter the memory, unless
        ``update`` is false. Temperatures default to the memory's."""
        settings: dict[str, Any] = {
            "tau_s": self.number("tau_s") if tau_s is None else tau_s,
            "tau_t": self.number("tau_t") if tau_t is None else tau_t,
            "own_pair": self.own_pair,
            "divergence": self.divergence,
            "unit_memory": self.unit_memory,
            "precision": self.precision,
            "backend": self.backend,
        }
        embed = functools.partial(self.embed, f_s, f_t, update)
        if self.ranks.count > 1 and self.ranks.gather == "keys" and self.training:
            return keys_step(self, embed, settings)
        if self.ranks.count > 1 and self.ranks.gather == "shard":
            return shard_step(self, embed, settings)
        z_s, z_t, writes = embed()
        # Not whether it writes: a recomputation must call the operator that the forward called.
        if not (self.training and update):
            return functional.relational_loss(z_s, z_t, self.queue, **settings)
        if len(z_s) > self.nce_k:  # with newest_first only
            return self._step_of_many(z_s, z_t, writes, settings)
        return functional.relational_step_(
            z_s,
            z_t,
            self.queue,
            self.queue_ptr,
            enqueue=self.enqueue,
            newest_first=self.newest_first,
            momentum=self.number("slot_momentum"),
            **settings,
        )

    def _step_of_many(
        self, z_s: Tensor, z_t: Tensor, writes: bool, settings: dict[str, Any]
    ) -> Tensor:
        """A step of more than K samples: the first K enter the memory."""
        check.check_temperature("tau_s", settings["tau_s"])
        check.check_target("tau_t", settings["tau_t"], self.own_pair)
        if writes and self.enqueue == "before":
            z_s, z_t = reference.apart(self.queue, z_s, z_t)
            enqueue_(self, z_t)
        loss = functional.relational_loss(z_s, z_t, self.queue, **settings)
        if writes and self.enqueue == "after":
            enqueue_(self, z_t)
        return loss

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
            dtype: dtype of the embeddings. Under autocast give autocast's dtype. Default: that of
                the weights of ``embed_s``; without any, that of the memory.
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
            own_pair=self.own_pair,
            divergence=self.divergence,
            enqueue=self.enqueue,
            newest_first=self.newest_first,
            momentum=self.slot_momentum,
            unit_memory=self.unit_memory,
            precision=self.precision,
            device=self.queue.device,
        )
