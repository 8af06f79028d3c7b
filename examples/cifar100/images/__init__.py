"""Image sets and batches of them."""
