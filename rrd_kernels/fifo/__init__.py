"""The FIFO memory of earlier teacher embeddings: module, functions, several ranks."""
