"""State_dict layouts of the published code, newest first.

- ``2025``: ``memory.embed_s.{weight,bias}``, ``memory.queue``, ``memory.queue_ptr``
- ``2024-09``: ``embed_s.{weight,bias}``, ``queue``, ``queue_ptr``
- ``2024-07``: ``embed_s.linear.{weight,bias}``, ``queue``, ``queue_ptr``

``embed_t`` has the same keys as ``embed_s``. This package writes the newest layout and loads all of
them unchanged. A state also loads if a wrapper put its name before every key: ``module`` (DDP,
DataParallel, AveragedModel), ``_orig_mod`` (``torch.compile``), ``_checkpoint_wrapped_module`` or
``_fsdp_wrapped_module``, in any nesting.
"""

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

from rrd_kernels import validation as check

__all__ = ["LAYOUTS", "to_layout"]

LAYOUTS = ("2025", "2024-09", "2024-07")

#: Names that wrapping modules put before state_dict keys: DataParallel, DDP and AveragedModel,
#: torch.compile, checkpoint_wrapper, FSDP.
WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

_WRAPPING = re.compile(rf"(?:(?:{'|'.join(WRAPPERS)})\.)*")

_COUNT = "n_averaged"  # beside the keys of an AveragedModel

_PREFIX = "memory."
_PROJECTIONS = ("embed_s.", "embed_t.")


def to_layout(state_dict: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Converts a criterion's state_dict to a published layout, for the code of that time to load.

    Args:
        state_dict: ``criterion.state_dict()`` of a :class:`rrd_kernels.RRDLoss`. The older layouts
            need a FIFO memory. Names that ``torch.compile`` or DDP put before every key are
            removed.
        layout: ``"2025"``, ``"2024-09"`` or ``"2024-07"``.

    Returns:
        A new dict that holds the same tensors.

    Raises:
        ValueError: the layout is unknown or has no momentum memory, or the keys are not those of a
            criterion.

    Source: the published repository's history; :mod:`rrd_kernels.checkpoint` lists the layouts.

    Example:
        >>> from rrd_kernels import RRDLoss
        >>> state = RRDLoss(s_dim=4, t_dim=4, feat_dim=8, nce_k=16).state_dict()
        >>> sorted(to_layout(state, "2024-07"))[:2]
        ['embed_s.linear.bias', 'embed_s.linear.weight']
    """
    check.check_choice("layout", layout, LAYOUTS)
    state_dict = dict(state_dict)
    unwrap_keys_(state_dict, "")
    foreign = [key for key in state_dict if not key.startswith(_PREFIX)]
    if foreign:
        raise ValueError(
            f"state_dict must be RRDLoss.state_dict(), whose keys begin with 'memory.'; got the "
            f"keys {foreign}"
        )
    if layout == "2025":
        return state_dict
    if f"{_PREFIX}contrast.params" in state_dict:
        raise ValueError(f"layout {layout!r} has no momentum memory; use layout='2025'")
    renamed = {}
    for key, value in state_dict.items():
        name = key.removeprefix(_PREFIX)
        if layout == "2024-07" and name.startswith(_PROJECTIONS):
            head, tail = name.split(".", 1)
            if tail in ("weight", "bias"):  # else it is no nn.Linear, and has names of its own
                name = f"{head}.linear.{tail}"
        renamed[name] = value
    return renamed


def wrapping_of(keys: Iterable[str]) -> str:
    """The wrappers' names before every one of ``keys``, in any nesting, such as
    ``module._orig_mod.``; empty if they differ between keys."""
    found = {_WRAPPING.match(key).group() for key in keys}  # type: ignore[union-attr]
    return found.pop() if len(found) == 1 else ""


def unwrap_keys_(state_dict: Any, prefix: str) -> None:
    """Removes the wrappers' names (:func:`wrapping_of`) from the keys under ``prefix``, in place,
    and the count that an AveragedModel has beside them.

    ``Module.load_state_dict`` passes a copy of the user's dict, so the user's does not change.
    """
    keys = [key for key in state_dict if key.startswith(prefix)]
    count = prefix + _COUNT
    if count in keys and all(key.startswith(f"{prefix}module.") for key in keys if key != count):
        del state_dict[count]
        keys.remove(count)
    wrapped = prefix + wrapping_of(key.removeprefix(prefix) for key in keys)
    if wrapped != prefix:
        for key in keys:  # in their order, which errors follow
            state_dict[prefix + key.removeprefix(wrapped)] = state_dict.pop(key)


def unwrap_projections_(state_dict: Any, prefix: str, own: Iterable[str]) -> None:
    """The same for each projection under ``prefix``, which may have been wrapped alone. A
    projection that is wrapped in this memory too, by its ``own`` names, keeps its keys."""
    own = list(own)
    for head in _PROJECTIONS:
        if not wrapping_of(name.removeprefix(head) for name in own if name.startswith(head)):
            unwrap_keys_(state_dict, prefix + head)


def rename_older_keys_(state_dict: Any, prefix: str, own: Container[str]) -> None:
    """Renames an older layout's keys under ``prefix`` to the newest's, in place.

    ``own``: the criterion's own names. A key that is among them, as of a projection that the user
    gave, stays as it is."""
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith(_PREFIX):
            continue
        if name in ("queue", "queue_ptr") or name.startswith(_PROJECTIONS):
            name = _PREFIX + name
            name = name if name in own else name.replace(".linear.", ".")
            state_dict[prefix + name] = state_dict.pop(key)
