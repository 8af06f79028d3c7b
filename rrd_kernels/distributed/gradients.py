"""Averages the projections' gradients over ranks, where no DistributedDataParallel does.

DDP averages what belongs to the module whose forward runs. The published ImageNet script wraps each
projection in a DDP of its own and calls the criterion beside them: these average nothing.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings


def _is_averaged(memory: Embeddings) -> bool:
    """Whether a DDP whose forward runs averages the gradients of this memory's projections."""
    active = DistributedDataParallel._active_ddp_module
    return active is not None and any(module is memory for module in active.module.modules())


class Averaging:
    """Hooks on the trained parameters of one memory's projections. A copy has none until its first
    step."""

    def __init__(self) -> None:
        self._ranks: Ranks | None = None
        self._hooked: list[tuple[nn.Parameter, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_ranks": None, "_hooked": []}

    def begin_step(self, memory: Embeddings, ranks: Ranks) -> None:
        """Decides who averages the gradients of the step that begins.

        Averaging an average changes nothing: a training that averages by other means is right too.
        """
        shares = ranks.gather != "none" and not _is_averaged(memory)
        self._ranks = ranks if shares else None
        trained = memory.trained()
        hooked = [weight for weight, _ in self._hooked]
        if not shares or list(map(id, trained)) == list(map(id, hooked)):
            return
        for _, handle in self._hooked:
            handle.remove()
        self._hooked = [(weight, weight.register_hook(self._average)) for weight in trained]

    @torch._disable_dynamo
    def _average(self, grad: Tensor) -> Tensor:
        ranks = self._ranks
        if ranks is None or ranks.count == 1 or type(grad) is not Tensor:  # a DTensor is sharded
            return grad
        mean = grad / ranks.count
        dist.all_reduce(mean, group=ranks.group)
        return mean
