"""The Triton kernels: nothing else in the package is written in Triton, and only
rrd_kernels/triton/compiled.py imports them."""
