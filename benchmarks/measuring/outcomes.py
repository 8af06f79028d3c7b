"""What becomes of an implementation that has no figures, in a few words."""

from collections.abc import Callable
from typing import Any

import torch

OUT_OF_MEMORY, DISAGREES, NOT_AVAILABLE = "out of memory", "disagrees", "not available"
#: Not tried, which is no failure.
NOT_MEASURED = "not measured"


def tried(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A row's fields, or :func:`failure`: what is measured after it can go on."""
    try:
        return function(*arguments)
    except Exception as error:
        return failure(error)


def failure(error: BaseException) -> dict[str, str]:
    """A row's fields on it."""
    outcome = DISAGREES if isinstance(error, ArithmeticError) else NOT_AVAILABLE
    # On a CPU PyTorch says so in a plain RuntimeError.
    said = any(text in str(error) for text in ("can't allocate memory", "bad_alloc"))
    if said or isinstance(error, torch.OutOfMemoryError | MemoryError):
        outcome = OUT_OF_MEMORY
    return {"outcome": outcome, "reason": first_line(error)}


def first_line(error: BaseException) -> str:
    """Of the error's text, after its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
