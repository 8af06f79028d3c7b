"""Time and memory of one training step against the published eager code and SDPA."""
