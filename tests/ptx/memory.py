"""Shared memory of a block and the tensors of a launch, each with bounds of its own."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptx.arithmetic import Array
from ptx.program import PtxError
from ptx.races import Blocks, Moment, Warps, Who

#: Bits of an address within an argument's own part of the address space.
WINDOW = 44

#: Where shared memory begins: what is computed without its base is outside.
SHARED_BASE = 1024


def _units(addresses: Array, base: int, width: int, unit: int) -> Array:
    """Of accesses to ``width`` bytes each, from ``base`` on: [n, width / unit]."""
    if width < unit or (addresses % addresses.dtype.type(width)).any():
        raise PtxError(f"an address is no multiple of {width} bytes, or those are a part of {unit}")
    first = (addresses.astype(np.int64) - base) // unit
    return first[:, None] + np.arange(width // unit)


class Memory:
    """Bytes in units, which of them have been written, and by which warps they are used."""

    def __init__(self, data: Array, written: bool) -> None:
        self.data, self.unit = data, data.itemsize
        self.written = np.full(len(data), written)
        self.warps = Warps(len(data))

    def read(self, units: Array, threads: Array) -> Array:
        """[n, width / unit] by ``threads`` [n]."""
        if not self.written[units].all():
            raise PtxError("reads what nobody has written")
        self.warps.read(units, threads)
        return self.data[units]

    def write(self, units: Array, values: Array, threads: Array) -> None:
        self.warps.write(units, threads, self.data[units] == values)
        self.data[units] = values
        if (self.data[units] != values).any():
            raise PtxError("threads store different values to one place")
        self.written[units] = True


class Shared(Memory):
    """Of one block. What is written is generic until a fence shows it to the asynchronous proxy."""

    def __init__(self, size: int, unit: int) -> None:
        super().__init__(np.zeros(-(-size // unit), f"u{unit}"), False)
        self.unfenced = np.zeros(self.data.shape, bool)  # for the asynchronous proxy
        self._copied = np.zeros(self.data.shape, bool)  # by cp.async that is not waited for
        self._multiplied = np.zeros(self.data.shape, np.int16)  # by products not waited for

    def _units(self, addresses: Array, width: int) -> Array:
        units = _units(addresses, SHARED_BASE, width, self.unit)
        outside = (units < 0) | (units >= len(self.data))
        if outside.any():
            at, size = units[outside][0] * self.unit, len(self.data) * self.unit
            raise PtxError(f"byte {at} is outside of {size} bytes of shared memory")
        if self._copied[units].any():
            raise PtxError("uses what cp.async copies and nothing has waited for")
        return units

    def load(self, addresses: Array, width: int, threads: Array) -> Array:
        """[n, width / unit] by ``threads`` [n]."""
        return self.read(self._units(addresses, width), threads)

    def store(self, addresses: Array, values: Array, threads: Array) -> None:
        """``values`` [n, elements]."""
        values = values.view(self.data.dtype)
        self.write(self._writable(addresses, values.shape[1] * self.unit), values, threads)

    def _writable(self, addresses: Array, width: int) -> Array:
        units = self._units(addresses, width)
        if self._multiplied[units].any():
            raise PtxError("writes an operand of a product that nothing has waited for")
        return units

    def write(self, units: Array, values: Array, threads: Array) -> None:
        super().write(units, values, threads)
        self.unfenced[units] = True

    def begin_copy(self, addresses: Array, width: int, threads: Array) -> Array:
        """The units that an asynchronous copy is to write, locked until :meth:`end_copy`."""
        units = self._writable(addresses, width)
        self.warps.write(units, threads)
        self._copied[units] = True
        return units

    def end_copy(self, units: Array, values: Array, threads: Array) -> None:
        """What was copied is there for ``threads``, for others after a barrier."""
        self._copied[units] = False
        self.write(units, values, threads)

    def begin_product(self, addresses: Array, threads: Array) -> Array:
        """The units of an operand's 16-byte chunks, locked until :meth:`end_product`; ``threads``
        is one of each warp that multiplies."""
        units = self._units(addresses, 16)
        if self.unfenced[units].any():
            raise PtxError("multiplies what no fence.proxy.async shows to the asynchronous proxy")
        self.end_product(units, threads, begun=1)
        return units

    def end_product(self, units: Array, threads: Array, begun: int = -1) -> None:
        np.add.at(self._multiplied, units, begun)
        for thread in threads:  # it may read at any time between
            self.read(units, np.full(len(units), thread))


class Allocation(Memory):
    """A tensor's storage."""

    def __init__(self, tensor: Tensor, unit: int, written: bool) -> None:
        storage, size = tensor.untyped_storage(), tensor.untyped_storage().nbytes()
        raw = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
        super().__init__(raw.numpy()[: size // unit * unit].view(f"u{unit}"), written)
        self.blocks = Blocks(len(self.data))


@dataclass(frozen=True)
class Window:
    """What one pointer argument may touch: the elements of its tensor."""

    base: int  # its address in the interpreted kernel
    allocation: Allocation
    first: int  # unit of the storage
    inside: Array  # of units from there

    @classmethod
    def of(cls, index: int, tensor: Tensor, allocation: Allocation) -> "Window":
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        places = torch.zeros(extent if tensor.numel() else 0, dtype=torch.bool)
        if tensor.numel():
            places.as_strided(tensor.shape, tensor.stride()).fill_(True)
        inside = np.repeat(places.numpy(), tensor.element_size() // allocation.unit)
        first = tensor.storage_offset() * tensor.element_size() // allocation.unit
        # As the tensor itself is aligned, since kernels are compiled for that.
        base = ((index + 1) << WINDOW) + (1 << 20) + tensor.data_ptr() % 4096
        return cls(base, allocation, first, inside)

    def all_written(self) -> bool:
        return bool(self.allocation.written[self.first :][: len(self.inside)][self.inside].all())


class Tensors:
    """The global memory of one launch: a window for each pointer."""

    def __init__(self, windows: list[Window]) -> None:
        self._windows = windows
        self.who = Who(0)  # the running block
        #: By address of an atomic counter: what each block had done when it released.
        self.releases: dict[int, dict[int, Moment]] = {}

    def _units(self, addresses: Array, width: int) -> tuple[Allocation, Array]:
        number = int(addresses[0]) >> WINDOW
        if not 0 < number <= len(self._windows):
            raise PtxError(f"address {int(addresses[0]):#x} is in no tensor")
        window = self._windows[number - 1]
        units = _units(addresses, window.base, width, window.allocation.unit)
        outside = (units < 0) | (units >= len(window.inside))
        if not outside.any():
            outside = ~window.inside[units]
        if outside.any():
            at = units[outside][0] * window.allocation.unit
            raise PtxError(f"byte {at} of pointer {number - 1} is outside of its tensor's elements")
        return window.allocation, units + window.first

    def load(self, addresses: Array, width: int, threads: Array) -> Array:
        """[n, width / unit] by ``threads`` [n]."""
        allocation, units = self._units(addresses, width)
        allocation.blocks.read(units, threads, self.who)
        return allocation.read(units, threads)

    def store(self, addresses: Array, values: Array, threads: Array) -> None:
        """``values`` [n, elements]."""
        width = values.shape[1] * values.itemsize
        allocation, units = self._units(addresses, width)
        allocation.blocks.write(units, threads, self.who)
        allocation.write(units, values.view(allocation.data.dtype), threads)

    def add(self, address: Array, value: Array, thread: Array) -> Array:
        """An atomic addition by one thread, all [1]; returns what was there."""
        allocation, units = self._units(address, value.itemsize)
        if not allocation.written[units].all():
            raise PtxError("reads what nobody has written")
        allocation.warps.write(units, thread, allocation.blocks.atomic(units))
        allocation.blocks.write(units, thread, self.who, atomic=True)
        before = allocation.data[units].view(value.dtype)[0]
        allocation.data[units] = (before + value)[None, :].view(allocation.data.dtype)
        return before

    def barrier(self) -> None:
        for window in self._windows:
            window.allocation.warps.barrier()
