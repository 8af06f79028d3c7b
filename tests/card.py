"""An emulated GPU, without timing: launches executed by tests/ptx, on the tensors of a CPU."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from ptx.arithmetic import Array
from ptx.instructions import compile_ptx
from ptx.machine import Block, Place
from ptx.memory import Allocation, Tensors, Window
from ptx.program import Program, PtxError
from torch import Tensor

from rrd_kernels.triton.cards import Hardware
from rrd_kernels.triton.runtime.launch import Launch, Specialization, specialize

NUMBERS = {"i32": np.int32, "i64": np.int64, "fp32": np.float32, "fp64": np.float64}


@functools.cache
def program_of(ptx: str) -> Program:
    return compile_ptx(ptx)


@dataclass(frozen=True)
class Kernel:
    """One launch."""

    ptx: str
    shared_bytes: int
    grid: tuple[int, ...]
    arguments: Sequence[Tensor | Array]  # a tensor for a pointer, a number of the right type
    dependent: bool = False  # may begin before the kernel before has ended


@dataclass
class Emulator:
    """Kernels run one after another, their blocks in some order."""

    late: bool = False  # asynchronous work is done when it is waited for, and not at once
    seed: int = 0
    executed: int = 0  # blocks
    _allocations: dict[int, Allocation] = field(default_factory=dict)  # by a storage's address
    _unwritten: set[int] = field(default_factory=set)

    @contextlib.contextmanager
    def operator(self) -> Iterator[None]:
        """Clears what is known of tensors when an operator ends."""
        try:
            yield
        finally:
            self._allocations.clear()
            self._unwritten.clear()

    def unwritten(self, tensor: Tensor) -> Tensor:
        """Notes that ``tensor`` comes from ``torch.empty``."""
        self._unwritten.add(tensor.untyped_storage().data_ptr())
        return tensor

    def check_written(self, tensors: Iterable[Tensor] | None) -> None:
        """That kernels have written every element of what an operator returns."""
        for tensor in tensors or ():
            allocation = self._allocations.get(tensor.untyped_storage().data_ptr())
            if allocation and not Window.of(0, tensor, allocation).all_written():
                raise PtxError("returns elements that nobody has written")

    def launch(self, kernels: Sequence[Kernel]) -> None:
        units: dict[int, int] = {}
        tensors = [a for kernel in kernels for a in kernel.arguments if isinstance(a, Tensor)]
        for tensor in tensors:
            address = tensor.untyped_storage().data_ptr()
            units[address] = min(units.get(address, 8), tensor.element_size())
        for tensor in tensors:
            address = tensor.untyped_storage().data_ptr()
            if address not in self._allocations:
                written = address not in self._unwritten
                self._allocations[address] = Allocation(tensor, units[address], written)
        early = False
        for kernel in kernels:
            for allocation in self._allocations.values():
                allocation.blocks.launch(kernel.dependent, early)
            early = self._run(kernel)

    def _run(self, kernel: Kernel) -> bool:
        """Whether a kernel after may have begun before the one before has ended."""
        program, windows, values = program_of(kernel.ptx), [], []
        for argument in kernel.arguments:
            if isinstance(argument, Tensor):
                allocation = self._allocations[argument.untyped_storage().data_ptr()]
                windows.append(Window.of(len(windows), argument, allocation))
                argument = np.array(windows[-1].base, np.uint64)
            values.append(argument)
        names = program.parameters
        values += [np.array(0, np.uint64)] * (len(names) - len(values))  # Triton's scratch memory
        parameters = dict(zip(names, values, strict=True))
        tensors = Tensors(windows)
        (x, y, z), triggered = (*kernel.grid, 1, 1)[:3], False
        with np.errstate(all="ignore"):
            for number in np.random.default_rng(self.seed).permutation(x * y * z):
                at = int(number) % x, int(number) // x % y, int(number) // x // y
                place = Place(
                    at, (x, y, z), parameters, kernel.shared_bytes, kernel.dependent, self.late
                )
                block = Block(program, place, tensors)
                block.run()
                tensors.barrier()
                triggered |= block.triggered_early
                self.executed += 1
        return triggered


@functools.cache
def compiled(specialization: Specialization, arch: str) -> tuple[str, int]:
    """The PTX that Triton makes, and how much shared memory it is given."""
    from rrd_kernels.triton.runtime.compiler import compile_kernel, nvidia_target

    kernel = compile_kernel(specialization, nvidia_target(arch))
    return kernel.asm["ptx"], kernel.metadata.shared


@dataclass
class Card(Emulator):
    """A GPU on which operators run, on tensors of the CPU."""

    arch: str = "sm_90"
    #: Whose block sizes, if not those of ``arch``.
    family: str = ""
    #: With more, a small problem is cut up so far that no loop goes round twice.
    multiprocessors: int = 1
    #: Changes a kernel's PTX, by the kernel's name.
    changed: Callable[[str, str], str] = lambda name, ptx: ptx

    def run(self, launches: Sequence[Launch]) -> None:
        self.launch([self._kernel(launch) for launch in launches])

    def _kernel(self, launch: Launch) -> Kernel:
        specialization = specialize(launch)
        ptx, shared_bytes = compiled(specialization, self.arch)
        arguments = [
            value if isinstance(value, Tensor) else np.array(value, NUMBERS[type_])
            for value, type_ in (
                (launch.arguments[name], type_) for name, type_ in specialization.passed
            )
        ]
        ptx = self.changed(launch.kernel.name, ptx)
        return Kernel(ptx, shared_bytes, launch.grid, arguments, launch.dependent)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """An operator's GPU function, whose launches are executed here."""
        from rrd_kernels.triton.fifo import operators
        from rrd_kernels.triton.momentum import operators as momentum_operators

        hardware = Hardware(self.family or self.arch, self.multiprocessors)
        instead = {"run": self.run, "hardware_of": lambda device: hardware}
        empty, new_empty = torch.empty, Tensor.new_empty
        with (
            mock.patch.multiple(operators, **instead),
            mock.patch.multiple(momentum_operators, **instead),
            mock.patch("torch.empty", lambda *a, **k: self.unwritten(empty(*a, **k))),
            mock.patch.object(
                Tensor, "new_empty", lambda *a, **k: self.unwritten(new_empty(*a, **k))
            ),
            self.operator(),
        ):
            returned = function(*arguments)
            self.check_written(returned)
            return returned
