"""In a process whose driver is the stub: CPU tensors go the way of those on an H200."""

import ctypes
from types import SimpleNamespace
from typing import Any

import torch

from rrd_kernels.extension import OPERATORS
from rrd_kernels.triton.cards import Hardware
from rrd_kernels.triton.fifo import operators
from rrd_kernels.triton.momentum import operators as momentum_operators
from rrd_kernels.triton.runtime import run

ARCH, HARDWARE = "sm_90", Hardware("sm_90", 132)
SHARED_BYTES = 227 * 1024
CUDA = torch._C.DispatchKey.CUDA


class Launched(ctypes.Structure):
    """A launch as the driver was asked for it."""

    _fields_ = (
        ("function", ctypes.c_int64),
        ("grid", ctypes.c_int64 * 3),
        ("block", ctypes.c_int64 * 3),
        ("shared_bytes", ctypes.c_int64),
        ("stream", ctypes.c_int64),
        ("dependent", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("parameters", ctypes.c_int64 * 64),
    )

    @property
    def name(self) -> str:
        return Function.from_address(self.function).name.decode()


class Function(ctypes.Structure):
    """What the stub knows of one."""

    _fields_ = (
        ("name", ctypes.c_char * 256),
        ("count", ctypes.c_int64),
        ("sizes", ctypes.c_int64 * 64),
        ("shared_bytes", ctypes.c_int64),
        ("prefers_shared", ctypes.c_int64),
        ("loaded_in_capture_mode", ctypes.c_int64),
    )


stub = ctypes.CDLL("libcuda.so.1")


def taken() -> list[Launched]:
    """The launches since the last call."""
    launches = (Launched * 64)()
    return list(launches[: stub.stub_take(launches)])


# A registration lasts as long as its library object.
_library = torch.library.Library("rrd_kernels", "IMPL")


def take_its_place() -> None:
    """From now on operators on CPU tensors launch kernels for an H200, which compute nothing."""
    operators.hardware_of = momentum_operators.hardware_of = lambda device: HARDWARE
    run.arch_of = lambda device: ARCH
    properties = SimpleNamespace(shared_memory_per_block_optin=SHARED_BYTES)
    torch.cuda.get_device_properties = lambda device: properties
    for name in ("relational_loss_forward", "relational_step_forward_"):
        op = getattr(torch.ops.rrd_kernels, name).default
        _library.impl(name, _on_cuda(op), "CPU", allow_override=True)
    for module, memory in ((operators, "fifo"), (momentum_operators, "momentum")):
        for name in OPERATORS[memory]:
            _library.impl(name, getattr(module, name), "CPU", allow_override=True)


def _on_cuda(op: Any) -> Any:
    return lambda *arguments: op._op_dk(CUDA, *arguments)
