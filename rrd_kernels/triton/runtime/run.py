"""Loads kernels once, from a pack or compiled by Triton, and launches them by csrc/cuda."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rrd_kernels.triton.cards import arch_of
from rrd_kernels.triton.runtime.installed import triton_found
from rrd_kernels.triton.runtime.launch import (
    Binary,
    Launch,
    Loaded,
    Specialization,
    encode,
    specialize,
)
from rrd_kernels.triton.runtime.pack import VARIABLE, pack_for

#: Bytes of a parameter by its type; pointers have eight.
SIZE = {"i32": 4, "i64": 8, "fp32": 4, "fp64": 8}
#: Bytes of Triton's pointers to scratch memory, which follow the kernel's own parameters.
SCRATCH = [8, 8]


class SharedMemoryError(RuntimeError):
    """A kernel needs more shared memory than the card has."""


# By specialization and device. None: Triton has to launch the kernel.
_loaded: dict[tuple[Specialization, int], Loaded | None] = {}
_by_triton: dict[tuple[Specialization, int], Any] = {}
_origins: Counter[str] = Counter()


def counts() -> dict[str, int]:
    """How many kernels of this process came from a pack, and how many were compiled."""
    return {origin: _origins[origin] for origin in ("pack", "compiled")}


def load(launch: Launch, device: int) -> Loaded | None:
    """The kernel of a launch, loaded at its first use; ``None`` if csrc/cuda cannot launch it.

    Raises:
        PackError: the pack for this card is missing or cannot be used.
        SharedMemoryError: the kernel needs more shared memory than the card has.
    """
    key = specialize(launch), device
    if key not in _loaded:
        _loaded.setdefault(key, _load(*key))  # of two threads the first wins
    return _loaded[key]


def _load(specialization: Specialization, device: int) -> Loaded | None:
    arch = arch_of(device)
    pack = pack_for(arch)
    binary, origin = pack.find(specialization) if pack else None, "pack"
    if binary is None:
        binary, origin = _compile(specialization, arch), "compiled"
    if binary is None:
        return None
    available = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if binary.shared_bytes > available:
        raise SharedMemoryError(
            f"rrd_kernels: {specialization.kernel.name} needs {binary.shared_bytes} bytes of "
            f"shared memory, but this card has {available}; use backend='reference'"
        )
    code = torch.frombuffer(bytearray(binary.code), dtype=torch.uint8)
    try:
        function, sizes = torch.ops.rrd_kernels.load_kernel(
            code, binary.name, binary.shared_bytes, device
        )
    except RuntimeError as error:
        where = (
            f"out of the pack {pack.folder}" if pack and origin == "pack" else "as compiled here"
        )
        raise RuntimeError(
            f"{error}, for {specialization.kernel.name} {where}. The driver may be older than the "
            f"compiler and refuse its code: update the driver, or switch between packs and "
            f"compilation by Triton ({VARIABLE} names packs)."
        ) from error
    # The parameters are not those expected, or the driver cannot report them: Triton launches.
    passed = tuple(specialization.passed)
    if sizes != [SIZE.get(type_name, 8) for _, type_name in passed] + SCRATCH:
        return None
    _origins[origin] += 1
    return Loaded(function, binary.threads, binary.shared_bytes, passed)


def _check_triton(specialization: Specialization) -> None:
    """Raises before Triton is imported: a stand-in for it could have any part of what is used."""
    if not triton_found():
        raise RuntimeError(
            f"rrd_kernels: no pack has {specialization.kernel.name} for "
            f"{dict(specialization.constants)}, and Triton, which would compile it, is not "
            f"installed. Install Triton, or add the kernel to a pack with "
            f"`python -m rrd_kernels.pack`"
        )


def _compile(specialization: Specialization, arch: str) -> Binary | None:
    _check_triton(specialization)
    from rrd_kernels.triton.runtime.compiler import binary_of, compile_kernel, nvidia_target

    return binary_of(compile_kernel(specialization, nvidia_target(arch)))


def load_all(launches: Sequence[Launch], device: int) -> list[Loaded] | None:
    """:func:`load` of all launches; ``None`` if csrc/cuda cannot launch one of them."""
    if torch.version.hip is not None:  # csrc/cuda has NVIDIA's driver only
        return None
    loaded = [kernel for launch in launches if (kernel := load(launch, device)) is not None]
    return loaded if len(loaded) == len(launches) else None


def run(launches: Sequence[Launch]) -> None:
    """Runs ``launches`` in order, on the current stream of their tensors' device."""
    tensors = (value for value in launches[0].arguments.values() if isinstance(value, Tensor))
    device = next(tensors).get_device()
    loaded = load_all(launches, device)
    if loaded is not None:
        torch.ops.rrd_kernels.launch_kernels(encode(launches, loaded), device)
        return
    for launch in launches:
        _launch_by_triton(launch, device)


def _launch_by_triton(launch: Launch, device: int) -> None:
    """Launches with Triton's launcher, on the current device and stream."""
    key = specialize(launch), device
    if key not in _by_triton:
        _check_triton(key[0])
    import triton

    from rrd_kernels.triton.runtime.compiler import compile_kernel, constants_of

    if key not in _by_triton:
        kernel = compile_kernel(key[0], triton.runtime.driver.active.get_current_target())
        try:
            kernel.run  # noqa: B018 - loads it now, before any graph's capture
        except triton.OutOfResources as error:
            raise SharedMemoryError(f"rrd_kernels: {key[0].kernel.name}: {error}") from error
        # Of two threads the first wins: dropping its kernel would make a used handle invalid.
        _by_triton.setdefault(key, kernel)
    grid = launch.grid + (1,) * (3 - len(launch.grid))
    values = launch.arguments | constants_of(launch.constants)
    _by_triton[key][grid](*(values[name] for name in launch.kernel.parameters))
