"""Relational Representation Distillation (RRD, arXiv 2407.12073) with fused kernels."""

from rrd_kernels import checkpoint, functional, ops, reference
from rrd_kernels.loss import RRDLoss
from rrd_kernels.memory import FifoMemory

__version__ = "0.1.0"

__all__ = ["FifoMemory", "RRDLoss", "checkpoint", "functional", "ops", "reference"]
