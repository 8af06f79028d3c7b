"""The momentum memory on a GPU: operators, launches, plans, and Triton kernels under kernels/."""
