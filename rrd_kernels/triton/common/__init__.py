"""What the kernels of both memories share."""
