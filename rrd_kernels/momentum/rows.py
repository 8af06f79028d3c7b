"""Rows and constants of a momentum memory, as its state_dict has them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.distributed.agreement import Standing
from rrd_kernels.settings import Settings, alias, number


def _checked(params: Tensor) -> list[float]:
    """The five numbers of ``params``, checked because they may come from a checkpoint.

    Raises:
        ValueError: K, nce_t, nce_m or a Z is out of range.
    """
    size, nce_t, z_v1, z_v2, nce_m = params.tolist()
    if not (1 <= size < math.inf and size == int(size)):
        raise ValueError(f"params[0] must be K, a positive whole number; got {size}")
    check.check_temperature("params[1] (nce_t)", nce_t)
    check.check_momentum("params[4] (nce_m)", nce_m)
    for name, z in (("params[2] (Z_v1)", z_v1), ("params[3] (Z_v2)", z_v2)):
        # Every loss would be NaN, or log(K + 1) without a gradient, from here on.
        if z == 0 or not math.isfinite(z):
            raise ValueError(
                f"{name} must be positive, or -1 until the first batch; got {z} in "
                f"{params.dtype}. Load a state that was not cast to a narrower dtype"
            )
    return [size, nce_t, z_v1, z_v2, nce_m]


def check_state(state_dict: Mapping[str, Any], key: str) -> None:
    """Checks the ``params`` of a state, before anything is copied."""
    params = state_dict.get(key)
    if isinstance(params, Tensor) and params.shape == (5,) and check.has_values(params):
        _checked(params)


#: Where ``params`` holds the settings.
_PARAMS = {"size": 0, "nce_t": 1, "nce_m": 4}


class MomentumRows(Settings):
    """Rows and constants of a :class:`rrd_kernels.MomentumMemory`, under their published names.

    Attributes:
        params: [5] buffer: K, nce_t, Z_v1, Z_v2, nce_m. Z is -1 until the first batch. Values
            written into it, or set by the attributes below, take effect at the next step. A
            compiled step does not see values written into it: set the attributes instead.
        size: K, the number of negatives drawn; ``K`` is another name.
        nce_t: temperature T of the similarity.
        nce_m: weight of the old row in an update.
        memory_v1: [n_data, D] buffer, the students' rows.
        memory_v2: [n_data, D] buffer, the teachers' rows.
    """

    params: Tensor
    memory_v1: Tensor
    memory_v2: Tensor

    nce_t = number("nce_t", check.check_temperature, "Temperature T of the similarity.")
    nce_m = number("nce_m", check.check_momentum, "Weight of the old row in an update.")
    K = alias("size")

    @property
    def size(self) -> int:
        """K, the number of negatives drawn for each sample."""
        return int(self._numbers["size"])

    @size.setter
    def size(self, value: int) -> None:
        check.check_size("nce_k", value)
        self.set_number("size", int(value))

    def __init__(
        self,
        n_data: int,
        feat_dim: int,
        size: int,
        nce_t: float,
        nce_m: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        memory_dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        # As published: uniform deviates, with the variance that gives a row a norm of about 1.
        reach = 1 / (feat_dim / 3) ** 0.5
        precise = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        params = torch.tensor([size, nce_t, -1, -1, nce_m], device=device, dtype=precise)
        self.register_buffer("params", params)
        for name in ("memory_v1", "memory_v2"):
            rows = torch.rand(n_data, feat_dim, device=device, dtype=dtype)
            self.register_buffer(name, rows.mul_(2 * reach).add_(-reach).to(memory_dtype))
            del rows  # before the next ones are drawn
        #: K, nce_t and nce_m as constructed: a state may have been loaded on some ranks only.
        self.given = (int(size), float(nce_t), float(nce_m))
        for name, value in zip(_PARAMS, self.given, strict=True):
            self.begin_with(name, value)
        self.standing = Standing.STALE  # until the ranks have compared memories
        self.normalized = False  # whether Z is known to be set
        #: Numbers set since construction or loading. Ranks must have set the same.
        self.scheduled: dict[str, float] = {}
        self._read: tuple[object, Tensor] = (None, self.params)  # its mark when last read
        self.read_params()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("multinomial", "unigrams"):  # which the published code draws from
            raise AttributeError(
                f"{name} does not exist here: negatives are drawn uniformly. For other negatives "
                f"pass contrast_idx to the criterion"
            )
        super().__setattr__(name, value)

    def set_number(self, name: str, value: float) -> None:
        """Sets K, nce_t or nce_m, in ``params`` too."""
        self.refresh()
        with torch.no_grad():
            self.params[_PARAMS[name]] = value
        if check.has_values(self.params):
            # Rounded as params is: a loaded state must not differ from the one that was saved.
            self.refresh()
        else:
            super().set_number(name, value)

    def read_params(self, *, scheduled: bool = False) -> None:
        """Reads K, nce_t and nce_m from ``params``; one host sync on a GPU."""
        if check.has_values(self.params):  # else load_state_dict reads them
            read = _checked(self.params)
            for name, place in _PARAMS.items():
                (super().set_number if scheduled else self.begin_with)(name, read[place])
        self.mark_read()

    def unchanged(self) -> Tensor | None:
        """In a graph of ``torch.compile``, whether ``params`` still holds the numbers that it was
        compiled with, as a bool on the device; on a CPU it raises if not. Else ``None``."""
        if not torch.compiler.is_compiling():
            return None
        known = [self.params[place] == self.number(name) for name, place in _PARAMS.items()]
        same = known[0] & known[1] & known[2]
        if same.device.type == "cpu":
            torch._assert_async(
                same,
                "params holds other numbers than this graph was compiled with; set nce_t, nce_m "
                "or nce_k of the criterion instead, which write params too",
            )
            return None
        return same

    def _mark(self) -> object:
        """A value that changes when ``params`` is written: on a CPU its numbers; elsewhere, without
        a host sync, its identity and its count of writes. Writes through ``.data`` are not
        counted."""
        params = self.params
        if not check.has_values(params):
            return None
        if params.device.type == "cpu":
            size, nce_t, _, _, nce_m = params.tolist()
            return size, nce_t, nce_m
        return id(params), 0 if params.is_inference() else params._version

    def mark_read(self) -> None:
        """Notes that the numbers read are those that ``params`` holds now."""
        if not torch.compiler.is_compiling():
            # At each step: past nn.Module's __setattr__, which takes as long as the rest.
            self.__dict__["_read"] = self._mark(), self.params  # kept, so that its id is its own

    def refresh(self) -> None:
        """Reads ``params`` if a schedule has written it since. A compiled graph cannot."""
        if torch.compiler.is_compiling() or self._mark() == self._read[0]:
            return
        before = dict(self._numbers)
        self.read_params(scheduled=True)
        changed = {n: v for n, v in self._numbers.items() if v != before[n]}
        self.scheduled = {**self.scheduled, **changed}

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        check_state(state_dict, f"{prefix}params")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.params = self.params.to(torch.promote_types(self.params.dtype, torch.float32))
        self.read_params()
        self.scheduled = {}
        self.standing, self.normalized = Standing.STALE, False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MomentumRows":
        params = self.params
        super()._apply(fn, recurse)
        if self.params.dtype in (torch.float16, torch.bfloat16):  # too few bits for Z
            self.params = params.to(self.params.device)
        return self
