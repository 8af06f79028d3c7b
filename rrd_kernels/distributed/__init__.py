"""One memory for several processes, over ``torch.distributed`` as it is.

``ranks`` says who takes part, ``agreement`` makes every rank see the same step or the same error,
``collectives`` moves rows and numbers, ``ddp`` keeps DistributedDataParallel's hands off memories.
The steps that use them are ``distributed.py`` of each memory.
"""

from rrd_kernels.distributed.ddp import ignore_in_ddp

__all__ = ["ignore_in_ddp"]
