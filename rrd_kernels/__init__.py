"""Relational Representation Distillation (RRD, arXiv 2407.12073) with fused kernels."""

from rrd_kernels import checkpoint, distributed, extension, functional, reference
from rrd_kernels.crd import CRDLoss
from rrd_kernels.fifo.memory import FifoMemory
from rrd_kernels.fifo.queue import RelationalQueue
from rrd_kernels.loss import RRDLoss
from rrd_kernels.momentum.memory import MomentumMemory
from rrd_kernels.momentum.negatives import ContrastSampler

__version__ = "0.1.0"

__all__ = [
    "CRDLoss",
    "ContrastSampler",
    "FifoMemory",
    "MomentumMemory",
    "RRDLoss",
    "RelationalQueue",
    "checkpoint",
    "distributed",
    "extension",
    "functional",
    "reference",
]
