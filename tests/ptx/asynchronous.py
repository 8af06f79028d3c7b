"""Copies and products that go on beside the threads, until these wait for them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ptx import tensor_cores
from ptx.arithmetic import Array
from ptx.program import PtxError

if TYPE_CHECKING:
    from ptx.machine import Block


class Groups:
    """Work that all threads of a block have begun, in groups that end in their order."""

    finish: Callable[[Any], None]  # one

    def __init__(self, block: "Block") -> None:
        self.block = block
        self.groups: list[list[Any]] = [[]]  # the last is open

    def check(self) -> None:
        if self.block.mask is not None:
            raise PtxError("not all threads of the block are here")

    def commit(self) -> None:
        self.check()
        self.groups.append([])

    def wait(self, newest: int) -> None:
        """For all groups but the ``newest``."""
        self.check()
        while len(self.groups) > newest + 1:
            for work in self.groups.pop(0):
                self.finish(work)


class Copies(Groups):
    """``cp.async``, from tensors to shared memory."""

    def copy(self, to: Array, source: Array, width: int, lanes: Array, read: Array) -> None:
        """By ``lanes`` [n], from ``source`` where ``read``; zeros elsewhere."""
        block = self.block
        units = block.shared.begin_copy(to, width, lanes)

        def load() -> Array:
            values = np.zeros((len(lanes), width), np.uint8)
            if read.any():
                loaded = block.tensors.load(source[read], width, lanes[read])
                values[read] = loaded.view(np.uint8)
            return values.view(block.shared.data.dtype)

        at_once = load()
        if not block.place.late:
            block.shared.data[units] = at_once
        self.groups[-1].append(
            lambda: block.shared.end_copy(units, load() if block.place.late else at_once, lanes)
        )

    finish = staticmethod(lambda work: work())


class Product(NamedTuple):
    """One ``wgmma.mma_async``, for all warpgroups of the block."""

    format: str
    accumulators: tuple[int, ...]  # registers
    inputs: tuple[int, ...]  # registers of A, if it is not in shared memory
    add: bool  # to what the accumulators hold
    #: What is in shared memory, B last: units for each warpgroup, rows, whether it is transposed.
    stored: list[tuple[list[Array], int, bool]]


class Products(Groups):
    """``wgmma``, and the registers and the shared memory that pending products hold."""

    def __init__(self, block: "Block") -> None:
        super().__init__(block)
        self._fenced = False
        self.accessed: set[int] = set()  # registers, since the last wgmma.fence
        self.accumulators: frozenset[int] = frozenset()
        self.inputs: frozenset[int] = frozenset()

    @property
    def pending(self) -> list[Product]:
        return [product for group in self.groups for product in group]

    def fence(self) -> None:
        self.check()
        self._fenced = True
        self.accessed.clear()

    def begin(self, product: Product) -> None:
        self.check()
        if not self._fenced or self.accessed.intersection(product.accumulators + product.inputs):
            raise PtxError("no wgmma.fence since its registers were accessed")
        if self.accumulators.intersection(product.inputs):
            raise PtxError("multiplies an accumulator of a product that nothing has waited for")
        if self.inputs.intersection(product.accumulators):
            raise PtxError("overwrites an operand of a product that nothing has waited for")
        for other in {p.accumulators for p in self.pending} - {product.accumulators}:
            if set(other).intersection(product.accumulators):
                raise PtxError("adds to accumulators of a product of another shape")
        self.groups[-1].append(product)
        self._hold()
        if not self.block.place.late:
            self._compute(product)

    def wait(self, newest: int) -> None:
        super().wait(newest)
        self._hold()

    def finish(self, work: Product) -> None:
        if self.block.place.late:
            self._compute(work)
        for units, _, _ in work.stored:
            for group, part in enumerate(units):
                self.block.shared.end_product(part, warps_of(group))

    def _hold(self) -> None:
        self.accumulators = frozenset(r for p in self.pending for r in p.accumulators)
        self.inputs = frozenset(r for p in self.pending for r in p.inputs)

    def _compute(self, product: Product) -> None:
        registers: Any = self.block.registers
        data = self.block.shared.data

        def held(numbers: tuple[int, ...]) -> list[Array]:
            return [registers[number].view(np.uint32) for number in numbers]

        matrices = []
        if product.inputs:
            left = tensor_cores.left(held(product.inputs), product.format)
            matrices.append(left.reshape(-1, 64, left.shape[2]))
        for units, *shape in product.stored:
            words = (data[part].view(np.uint32) for part in units)
            matrices.append(
                np.stack([tensor_cores.operand(w, product.format, *shape) for w in words])
            )
        result = matrices[0] @ matrices[1].transpose(0, 2, 1)
        if product.add:
            before = tensor_cores.accumulated(held(product.accumulators))
            result = result + before.reshape(result.shape)
        values = tensor_cores.scattered(result.reshape(-1, 16, result.shape[2]))
        for number, value in zip(product.accumulators, values, strict=True):
            registers[number] = value


def warps_of(group: int) -> Array:
    """A thread of each warp of a warpgroup."""
    return 128 * group + 32 * np.arange(4)
