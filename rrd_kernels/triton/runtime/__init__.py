"""What compiles, keeps and launches kernels, whatever they compute."""
