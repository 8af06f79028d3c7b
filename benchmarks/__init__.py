"""Time and memory of one training step against the published code, torch.compile and SDPA."""
