"""Compiles, stores and launches kernels, whatever they compute."""
