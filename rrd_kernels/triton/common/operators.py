"""What the operators of both memories share."""

import contextlib

import torch


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes ``device`` the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def settled(precision: str | None) -> str:
    """The products' format now, as ``settled`` of ``csrc/cuda/relational_loss.cpp``."""
    if precision is not None:
        return precision
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"
