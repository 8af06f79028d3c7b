"""Checkpoints in the published layout, written so that a kill at any moment loses nothing."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import files
from rrd_kernels.checkpoint import WRAPPERS


def write_atomically(state: dict[str, Any], path: Path) -> None:
    """``path`` is either the old file or the new one, whole, whenever the process ends.

    Args:
        state: what ``torch.save`` is given.
        path: in a folder that exists.
    """
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint, tensors and plain values only.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{path} must hold a dict with the model's state_dict under 'model'")
    return state


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the keys that the module itself has.

    Args:
        state: a module's state_dict. The module, or modules in it, may have been in DataParallel,
            DDP, ``torch.compile``, FSDP or ``checkpoint_wrapper``, in any nesting, which put names
            such as ``module.`` and ``_orig_mod.`` into the keys; or in an AveragedModel, whose
            counter ``n_averaged`` is left out.

    Raises:
        ValueError: two keys differ in such names only.
    """
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        head, dot, last = key.rpartition(".")
        if last == "n_averaged" and any(name.startswith(f"{head}{dot}module.") for name in state):
            continue
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in plain:
            raise ValueError(f"it has {name} more than once, wrapped in different ways")
        plain[name] = value
    return plain


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that training on ``device`` draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
