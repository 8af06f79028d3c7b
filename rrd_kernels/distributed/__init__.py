"""One memory shared by several processes, over plain ``torch.distributed``.

``ranks``: the processes that take part. ``agreement``: the same step, or an error, on every rank.
``collectives``: rows and integers between ranks. ``ddp``: keeps DistributedDataParallel from
overwriting memories. The steps that use them are in fifo/ and momentum/.
"""

from rrd_kernels.distributed.ddp import ignore_in_ddp

__all__ = ["ignore_in_ddp"]
