"""The FIFO memory on a GPU: operators, launches, plans, and Triton kernels under kernels/."""
