"""A block of threads: registers as arrays over its threads, and the order in which they go on.

Threads that have gone different ways are taken by the smallest program counter, and go on together
where they meet.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptx.arithmetic import DTYPES, Array
from ptx.asynchronous import Copies, Products
from ptx.memory import SHARED_BASE, Shared, Tensors
from ptx.program import Program, PtxError
from ptx.races import Who

#: What an instruction does to a block.
Step = Callable[["Block"], None]


@dataclass(frozen=True)
class Place:
    """What a block does not share with the others of its launch."""

    block: tuple[int, int, int]
    grid: tuple[int, int, int]
    parameters: dict[str, Array]
    shared_bytes: int
    dependent: bool  # may run before the kernel before has ended
    late: bool  # asynchronous work is done when it is waited for, and not at once


class Block:
    """One block, to be run once."""

    def __init__(self, program: Program, place: Place, tensors: Tensors) -> None:
        self.program, self.place, self.tensors = program, place, tensors
        self.threads = program.threads
        self.every = np.arange(self.threads)
        self.registers: list[Array | None] = [None] * len(program.numbers)
        self.shared = Shared(place.shared_bytes, program.shared_unit)
        self.shared.warps.shift = 0 if self.threads == 32 else 5
        self.memory = {"shared": self.shared, "global": tensors}
        x, y, z = place.block
        self.who = tensors.who = Who(x + place.grid[0] * (y + place.grid[1] * z))
        if place.dependent:
            self.who.early = np.ones(self.threads, bool)
        #: Whether the kernel after may have begun before the one before had ended.
        self.triggered_early = False
        self.copies, self.products = Copies(self), Products(self)
        self.pc = 0
        self.mask: Array | None = None  # of the threads that go on together; None: all
        self._apart: dict[int, Array] = {}  # other threads, by where they are
        self._at_barrier: dict[int, Array] = {}

    def run(self) -> None:
        steps, number = self.program.steps, 0
        try:
            while self.pc >= 0:
                number = self.pc
                self.pc += 1
                steps[number](self)
                if self._apart:
                    self._choose()
            if self.products.pending or (self.who.early is not None and self.who.early.any()):
                raise PtxError("ends before its products do, or the kernel before")
        except PtxError as error:
            where = self.program.instructions[number].where
            where = f"{self.program.name}, block {self.place.block}, {where}"
            raise PtxError(f"{where}: {error}") from error

    def lanes(self) -> Array:
        """The threads that go on, by number."""
        return self.every if self.mask is None else np.flatnonzero(self.mask)

    def active(self) -> Array:
        return np.ones(self.threads, bool) if self.mask is None else self.mask

    def whole_warps(self) -> None:
        """What a warp does together, all of its lanes must."""
        warps = self.active().reshape(-1, 32)
        if (warps.any(axis=1) != warps.all(axis=1)).any():
            raise PtxError("not all lanes of a warp are here")

    def branch(self, target: int, taken: Array | None) -> None:
        """Goes to ``target``, those that have ``taken`` it; None: all."""
        active = self.active()
        here = active & ~taken if taken is not None else active & False
        if not here.any():
            self.pc = target
        elif (active & ~here).any():
            self._add(self._apart, target, active & ~here)
            self._resume(self.pc, here)

    def proxy_fence(self) -> None:
        self.products.check()
        self.shared.unfenced[:] = False

    def wait_for_predecessor(self) -> None:
        if self.who.early is not None:
            self.who.early &= ~self.active()

    def launch_dependents(self) -> None:
        self.triggered_early |= self.who.early is not None and bool(self.who.early.any())

    def warp_barrier(self) -> None:
        self.whole_warps()
        if self.threads == 32:
            self.barrier()

    def barrier(self) -> None:
        self.whole_warps()
        self._add(self._at_barrier, self.pc, self.active())
        self.go_on()

    def _add(self, groups: dict[int, Array], pc: int, mask: Array) -> None:
        groups[pc] = groups[pc] | mask if pc in groups else mask

    def _resume(self, pc: int, mask: Array) -> None:
        self.pc, self.mask = pc, None if mask.all() else mask

    def _choose(self) -> None:
        """The smallest program counter goes on, with all that are there."""
        if self.pc >= 0:
            self._add(self._apart, self.pc, self.active())
        first = min(self._apart)
        self._resume(first, self._apart.pop(first))

    def go_on(self) -> None:
        """Others, now that those of before have ended or wait."""
        self.pc = -1
        if self._apart:
            self._choose()
        elif self._at_barrier:
            if len(self._at_barrier) > 1 or not all(m.all() for m in self._at_barrier.values()):
                raise PtxError("threads wait for others at a different barrier, or that have ended")
            self.who.barriers += 1
            self.shared.warps.barrier()
            self.tensors.barrier()
            self._resume(*self._at_barrier.popitem())

    def write(self, number: int, value: Array) -> None:
        """A register, of the threads that go on."""
        products = self.products
        products.accessed.add(number)
        if number in products.accumulators or number in products.inputs:
            raise PtxError("overwrites an operand of a product that nothing has waited for")
        value = self.spread(value)
        if self.mask is not None:
            before = self.registers[number]
            if before is None:  # of the others a pattern that shows
                before = np.full(self.threads * value.itemsize, 0x55, np.uint8)
            value = np.where(self.mask, value, before.view(value.dtype))
        self.registers[number] = value

    def spread(self, value: Array) -> Array:
        """What is the same in all threads, once for each."""
        return value if value.ndim else np.full(self.threads, value)

    def of_lanes(self, lanes: Array, values: Array) -> list[Array]:
        """The columns of ``values`` [n, k], which are of ``lanes`` [n], each for all threads."""
        whole = np.zeros((values.shape[1], self.threads), values.dtype)
        whole[:, lanes] = values.T
        return list(whole)


def getter(program: Program, operand: Any, type_: str) -> Callable[[Block], Array]:
    """How a block's operand is read, as some type."""
    dtype = DTYPES[type_]
    if operand in program.numbers:
        number, held = program.numbers[operand], program.size_of(operand)
        if held < dtype.itemsize:
            raise PtxError(f"{operand} holds less than {type_}")
        if held > dtype.itemsize:  # of which the lower bits are looked at
            whole = getter(program, operand, f"u{8 * held}")
            return lambda block: whole(block).astype(f"u{dtype.itemsize}").view(dtype)

        def read(block: Block) -> Array:
            value, products = block.registers[number], block.products
            products.accessed.add(number)
            if number in products.accumulators:
                raise PtxError("reads an accumulator of a product that nothing has waited for")
            if value is None:
                raise PtxError(f"reads {operand}, which nobody has written")
            return value if value.dtype is dtype else value.view(dtype)

        return read
    if match := re.fullmatch(r"%(ctaid|nctaid)\.([xyz])", operand):
        name, axis = {"ctaid": "block", "nctaid": "grid"}[match[1]], "xyz".index(match[2])
        return lambda block: np.array(getattr(block.place, name)[axis], dtype)
    if operand == "%tid.x":
        return lambda block: block.every.astype(np.uint32).view(dtype)
    constant = _immediate(str(SHARED_BASE) if operand == "global_smem" else operand, dtype)
    return lambda block: constant


def _immediate(text: str, dtype: np.dtype) -> Array:  # type: ignore[type-arg]
    if text.startswith(("0f", "0d")):
        bits = np.array(int(text[2:], 16), "u4" if text[1] == "f" else "u8")
        return bits.view(dtype) if bits.itemsize == dtype.itemsize else bits.astype(dtype)
    try:
        value = int(text.removesuffix("U"), 0)
    except ValueError:
        raise PtxError(f"unknown operand {text}") from None
    if dtype.kind == "b":
        return np.array(value != 0)
    return np.array(value & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}").view(dtype)
