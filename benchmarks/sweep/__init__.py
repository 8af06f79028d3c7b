"""Block sizes, splits and dependent launches beside the table's, timed on a GPU."""
