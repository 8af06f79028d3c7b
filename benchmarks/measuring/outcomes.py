"""What becomes of an implementation that has no figures, in a few words."""

import torch

OUT_OF_MEMORY, DISAGREES, NOT_AVAILABLE = "out of memory", "disagrees", "not available"
#: Of what has not been tried, which is no failure.
NOT_MEASURED = "not measured"


def outcome_of(error: BaseException) -> str:
    if isinstance(error, ArithmeticError):
        return DISAGREES
    return OUT_OF_MEMORY if _ran_out_of_memory(error) else NOT_AVAILABLE


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU PyTorch says so in a plain RuntimeError."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in text
        or "bad_alloc" in text
    )


def first_line(error: BaseException) -> str:
    """Of the error's text, after its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def failure(error: BaseException) -> dict[str, str]:
    """A record's fields on it."""
    return {"outcome": outcome_of(error), "reason": first_line(error)}
