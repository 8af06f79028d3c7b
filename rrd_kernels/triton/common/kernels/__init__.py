"""Triton kernels, and functions that several kernels share; only
rrd_kernels/triton/runtime/compiler.py imports them."""
