"""One memory for several processes, over ``torch.distributed`` as it is.

``ranks`` says who takes part, ``agreement`` makes every rank see the same step or the same error,
``collectives`` moves rows and numbers, ``ddp`` keeps DistributedDataParallel's hands off memories.
``fifo`` and ``momentum`` are steps on memories of which each rank has a copy, ``shard`` one on a
memory that is spread, ``layout`` who has which of its rows, and ``state`` them in a state_dict.
"""

from rrd_kernels.distributed.ddp import ignore_in_ddp

__all__ = ["ignore_in_ddp"]
