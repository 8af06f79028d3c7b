"""Settings that a module reads at each step, so that a schedule may set them between steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.utils._python_dispatch import _disable_current_modes

from rrd_kernels.validation import Number, check_choice

#: Arguments that shape the state. A module has them for good.
FIXED = (
    *("s_dim", "t_dim", "feat_dim", "size", "nce_k", "n_data", "memory_type", "protocol"),
    *("start", "memory_dtype", "gather", "process_group", "dim", "own_pair", "newest_first"),
)


class Settings(nn.Module):
    """A module that refuses settings which would have no effect.

    Attributes made by :func:`number` may be set at any time. To ``torch.compile`` a float is a
    constant of the graph, and a new value means a new graph. So once one number has changed, all
    numbers reach a compiled step as tensors on the CPU: two graphs serve all values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}  # of the numbers, once one of them was set anew

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": {}}  # a copy has the numbers: no schedule has set them

    def __setattr__(self, name: str, value: Any) -> None:
        found = getattr(type(self), name, None)
        if isinstance(found, property) and found.fset is not None:
            # nn.Module would register a module or a parameter beside the property.
            object.__setattr__(self, name, value)
        elif name in FIXED or isinstance(found, property):
            raise AttributeError(
                f"{name} cannot be changed after this {type(self).__name__} was constructed. "
                f"Construct a new one with another {name}"
            )
        else:
            super().__setattr__(name, value)

    # Not in inference mode: tensors that are made in it cannot be trained or written elsewhere.
    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Settings":
        super()._apply(fn, recurse)
        return self

    def refuse_replica(self) -> None:
        """Raises if this is a replica of nn.DataParallel, made for one step on another device: its
        writes would be lost."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel copies the criterion to each device for one step, so that only "
                "the first device's rows would enter the memory; use DistributedDataParallel, "
                "or call the criterion outside DataParallel, on the gathered features"
            )

    def set_number(self, name: str, value: float) -> None:
        """Sets a number that is already checked."""
        changes = name in self._numbers and value != self._numbers[name]
        self._numbers[name] = value
        if changes:  # all of them, so that a second schedule needs no graph of its own
            with _disable_current_modes():  # a default device, for one
                self._tensors = {
                    other: torch.from_numpy(np.array(number, dtype=np.float64))
                    for other, number in self._numbers.items()
                }

    def begin_with(self, name: str, value: float) -> None:
        """Sets a number's value from construction or loading, not from a schedule."""
        self._numbers[name] = value
        self._tensors.pop(name, None)

    def number(self, name: str) -> Number:
        """Returns the number ``name`` as a step passes it to a function."""
        if name in self._tensors and torch.compiler.is_compiling():
            return self._tensors[name]
        return self._numbers[name]


class MeanLoss(_Loss):
    """A ``_Loss`` of PyTorch whose value is the mean over the batch, and can be nothing else.

    Some frameworks, NVIDIA ModelOpt for one, take no criterion that is not a ``_Loss``. The
    property keeps no state: copies and pickles are those of a plain module.
    """

    @property
    def reduction(self) -> str:
        """``"mean"``."""
        return "mean"

    @reduction.setter
    def reduction(self, value: str) -> None:
        check_choice("reduction", value, ("mean",))


def number(name: str, check: Callable[[str, float], None], doc: str) -> property:
    """An attribute for a number of :class:`Settings`, checked whenever it is set."""

    def read(module: Settings) -> float:
        return module._numbers[name]

    def write(module: Settings, value: float) -> None:
        check(name, value)
        module.set_number(name, float(value))

    return property(read, write, doc=doc)


def choice(name: str, choices: tuple[Any, ...]) -> property:
    """An attribute that is one of ``choices``, checked whenever it is set."""
    place = f"_{name}"

    def read(module: Any) -> Any:
        return getattr(module, place)

    def write(module: Any, value: Any) -> None:
        check_choice(name, value, choices)
        object.__setattr__(module, place, value)

    return property(read, write, doc=f"One of {choices}.")


def alias(of: str, *path: str) -> property:
    """Another name of the attribute ``of`` of this module, or of the module at ``path``.

    If that module has no such attribute, reading or setting it raises an AttributeError.
    """

    def owner(module: Any) -> Any:
        for name in path:
            module = getattr(module, name)
        return module

    def read(module: Any) -> Any:
        return getattr(owner(module), of)

    def write(module: Any, value: Any) -> None:
        target = owner(module)
        if not hasattr(target, of):
            raise AttributeError(f"{type(target).__name__} has no {of}")
        setattr(target, of, value)

    return property(read, write, doc=f"Another name of ``{'.'.join((*path, of))}``.")
