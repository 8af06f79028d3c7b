"""One memory shared by several processes, over plain ``torch.distributed``.

- ``ranks``: the processes that share the memory
- ``agreement``: the same step on every rank, or an error on every rank
- ``collectives``: exchange of rows and integers between ranks
- ``gradients``: the mean over ranks of the gradients of ``embed_s``, where no DDP averages them
- ``ddp``: keeps DistributedDataParallel from overwriting memories

The steps that use them are in ``rrd_kernels/fifo`` and ``rrd_kernels/momentum``.
"""

from rrd_kernels.distributed.ddp import ignore_in_ddp

__all__ = ["ignore_in_ddp"]
