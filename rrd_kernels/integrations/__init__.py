"""What other packages need to use the losses, each module under its package's own names."""
