"""Triton kernels; only rrd_kernels/triton/runtime/compiler.py imports them."""
