"""What a step costs on several ranks: a model of it, measurements of it, and docs/scaling.md."""
