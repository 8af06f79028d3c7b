"""Describes, compiles, stores and launches kernels."""
