"""State_dict layouts of the published code, newest first.

- ``2025``: ``memory.embed_s.{weight,bias}``, ``memory.queue``, ``memory.queue_ptr``
- ``2024-09``: ``embed_s.{weight,bias}``, ``queue``, ``queue_ptr``
- ``2024-07``: ``embed_s.linear.{weight,bias}``, ``queue``, ``queue_ptr``

``embed_t`` has the same keys as ``embed_s``. This package writes the newest layout and loads all of
them unchanged. A state also loads if a wrapper put its name before every key: ``module`` (DDP,
DataParallel, AveragedModel), ``_orig_mod`` (``torch.compile``), ``_checkpoint_wrapped_module`` or
``_fsdp_wrapped_module``, in any nesting.

The queues of other methods, which :class:`rrd_kernels.RelationalQueue` replaces, have these entries
in the checkpoints of their published code:

- ``moco``, ``seed``, ``ressl``: ``queue`` [D, K], ``queue_ptr`` [1]
- ``mocov2plus`` (solo-learn): ``queue`` [2, D, K], one ``queue_ptr`` [1] for both views
- ``isd``, ``solo_ressl`` (solo-learn): ``queue`` [K, D], ``queue_ptr`` [1]
- ``compress``: ``teacher_sample_similarities.memory`` [K, D]; writing starts again at row 0
- ``lightly_train``: ``teacher_queue`` [K, D], newest rows first
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rrd_kernels import validation as check

__all__ = ["LAYOUTS", "QUEUE_LAYOUTS", "queue_state", "to_layout", "to_queue_layout"]


class QueueLayout(NamedTuple):
    """How a published code stores its queue."""

    rows: str  # key of the rows
    has_pointer: bool = True  # under "queue_ptr"
    transposed: bool = False  # [D, K]
    views: int = 1  # queues in one tensor


QUEUE_LAYOUTS = {
    **dict.fromkeys(("moco", "seed", "ressl"), QueueLayout("queue", transposed=True)),
    "mocov2plus": QueueLayout("queue", transposed=True, views=2),
    **dict.fromkeys(("isd", "solo_ressl"), QueueLayout("queue")),
    "compress": QueueLayout("teacher_sample_similarities.memory", has_pointer=False),
    "lightly_train": QueueLayout("teacher_queue", has_pointer=False),
}

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
            f"state_dict must be RRDLoss.state_dict(), whose keys begin with 'memory.' (that of "
            f"CRDLoss has the published keys already); got the keys {foreign}"
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


def queue_state(checkpoint: Mapping[str, Any], layout: str, *, view: int = 0) -> dict[str, Tensor]:
    """Reads a published queue as the state of a :class:`rrd_kernels.RelationalQueue`.

    Args:
        checkpoint: a state_dict that has the queue, or a whole checkpoint with one under
            ``"state_dict"`` or ``"model"``. Other entries, and names of wrappers before the keys,
            are ignored.
        layout: the code that wrote it; :data:`QUEUE_LAYOUTS` has the names.
        view: with ``"mocov2plus"``, which of its two queues. Default 0.

    Returns:
        ``queue`` [K, D] and ``queue_ptr`` [1], for ``load_state_dict``. The tensors are copies.

    Raises:
        ValueError: the layout is unknown, the view is out of range, or the checkpoint has no such
            queue or one of another shape.

    Source: the published codes at the commits that the presets of
    :class:`rrd_kernels.RelationalQueue` name.

    Example:
        >>> import torch
        >>> from rrd_kernels import RelationalQueue
        >>> moco = {"state_dict": {"module.queue": torch.randn(8, 32),
        ...                        "module.queue_ptr": torch.tensor([4])}}
        >>> RelationalQueue.for_moco(8, 32).load_state_dict(queue_state(moco, "moco"))
        <All keys matched successfully>
    """
    check.check_choice("layout", layout, tuple(QUEUE_LAYOUTS))
    form = QUEUE_LAYOUTS[layout]
    if view not in range(form.views):
        raise ValueError(f"view must be in [0, {form.views}) with layout={layout!r}; got {view}")
    entries = checkpoint
    for name in ("state_dict", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            entries = checkpoint[name]
    found = {key[_WRAPPING.match(key).end() :]: key for key in entries}  # type: ignore[union-attr]
    needed = (form.rows, "queue_ptr") if form.has_pointer else (form.rows,)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"a checkpoint of layout {layout!r} must have the keys {list(needed)}; it lacks "
            f"{missing} and has {_about_queues(found)}"
        )
    rows = check.check_tensor(form.rows, entries[found[form.rows]]).detach()
    wanted = 2 if form.views == 1 else 3
    if rows.dim() != wanted or (wanted == 3 and len(rows) != form.views):
        raise ValueError(
            f"{form.rows} must have {wanted} dimensions with layout={layout!r}; got shape "
            f"{tuple(rows.shape)}"
        )
    rows = rows[view] if form.views > 1 else rows
    rows = (rows.T if form.transposed else rows).clone(memory_format=torch.contiguous_format)
    ptr = entries[found["queue_ptr"]].detach().reshape(1).clone() if form.has_pointer else None
    start = torch.zeros(1, dtype=torch.int64, device=rows.device)
    return {"queue": rows, "queue_ptr": start if ptr is None else ptr}


def _about_queues(keys: Iterable[str]) -> str:
    """The keys that may be a queue's, for errors."""
    names = sorted(key for key in keys if "queue" in key or "memory" in key)
    return f"the keys {names}" if names else "no key that names a queue"


def to_queue_layout(
    state: Mapping[str, Any] | Sequence[Mapping[str, Any]], layout: str
) -> dict[str, Tensor]:
    """Converts the state of a :class:`rrd_kernels.RelationalQueue` to a published layout.

    Args:
        state: ``queue.state_dict()``; with ``"mocov2plus"`` those of its two queues.
        layout: the code that is to load it; :data:`QUEUE_LAYOUTS` has the names.

    Returns:
        A new dict of copies, with the keys of the module that had the queue. Without a pointer the
        rows begin with that of slot ``queue_ptr``: the newest of a queue that shifts, the oldest of
        CompRess's, which writes row 0 first.

    Raises:
        TypeError, ValueError: the layout is unknown, the number of states is not that of its
            queues, their pointers differ, or a state is not of a whole queue.

    Source: as :func:`queue_state`.

    Example:
        >>> from rrd_kernels import RelationalQueue
        >>> state = RelationalQueue.for_moco(dim=8, size=32).state_dict()
        >>> to_queue_layout(state, "moco")["queue"].shape
        torch.Size([8, 32])
    """
    check.check_choice("layout", layout, tuple(QUEUE_LAYOUTS))
    form = QUEUE_LAYOUTS[layout]
    states = [state] if isinstance(state, Mapping) else list(state)
    if len(states) != form.views:
        raise ValueError(f"layout {layout!r} is of {form.views} queue(s); got {len(states)}")
    rows, pointers = [], []
    for one in states:
        if not {"queue", "queue_ptr"} <= one.keys():
            raise ValueError(
                f"a state must be RelationalQueue.state_dict(), with queue and queue_ptr; got "
                f"{_about_queues(one)}"
            )
        queue = check.check_rows("queue", one["queue"]).detach()
        pointers.append(int(one["queue_ptr"]) % len(queue))
        if not form.has_pointer:
            queue = queue.roll(-pointers[-1], 0)
        rows.append(
            (queue.T if form.transposed else queue).clone(memory_format=torch.contiguous_format)
        )
    if len(set(pointers)) > 1:
        raise ValueError(f"both queues must be at one slot; got queue_ptr {pointers}")
    written = {form.rows: torch.stack(rows) if form.views > 1 else rows[0]}
    if form.has_pointer:
        written["queue_ptr"] = states[0]["queue_ptr"].detach().clone()
    return written


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
