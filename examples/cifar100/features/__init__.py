"""The losses of features, by method."""
