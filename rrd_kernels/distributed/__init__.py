"""One memory for several processes, over ``torch.distributed`` as it is.

:mod:`ranks` says who takes part, :mod:`agreement` makes every rank see the same step or the same
error, :mod:`collectives` moves rows, :mod:`ddp` keeps DistributedDataParallel's hands off memories.
"""

from rrd_kernels.distributed.ddp import ignore_in_ddp

__all__ = ["ignore_in_ddp"]
