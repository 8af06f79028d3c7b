"""The operators behind :class:`rrd_kernels.RRDLoss`, as functions.

Each function checks its arguments, fills in the defaults and calls one operator. Its reference is
the function of the same name and meaning in :mod:`rrd_kernels.reference`.
"""

from rrd_kernels.fifo.functional import enqueue_, relational_loss, relational_step_, warmup
from rrd_kernels.fifo.partials import loss_of_partials, relational_partials
from rrd_kernels.momentum.contrastive import sampled_contrastive_loss
from rrd_kernels.momentum.functional import (
    estimate_normalizers_,
    momentum_update_,
    sampled_relational_loss,
)

__all__ = [
    "enqueue_",
    "estimate_normalizers_",
    "loss_of_partials",
    "momentum_update_",
    "relational_loss",
    "relational_partials",
    "relational_step_",
    "sampled_contrastive_loss",
    "sampled_relational_loss",
    "warmup",
]
