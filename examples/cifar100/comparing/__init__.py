"""Many trainings side by side: processes, figures, tables and pictures."""
