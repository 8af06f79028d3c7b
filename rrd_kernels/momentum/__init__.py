"""The momentum memory, a row for each sample: module, functions, negatives, several ranks."""
