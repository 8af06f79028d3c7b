"""Triton kernels, and functions of several of them; only
rrd_kernels/triton/runtime/compiler.py imports them."""
