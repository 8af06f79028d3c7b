"""What a kernel needs of a multiprocessor, as the CUDA driver has it."""

import ctypes
from dataclasses import dataclass

import torch

from rrd_kernels.triton.launch import Launch
from rrd_kernels.triton.run import load

# CUfunction_attribute, of cuda.h.
LOCAL_SIZE_BYTES, NUM_REGS = 3, 4


@dataclass(frozen=True)
class Resources:
    """Of one kernel."""

    #: Of a thread.
    registers: int
    #: Of a thread, where registers have spilled.
    local_bytes: int
    #: Of a program.
    shared_bytes: int
    #: That a multiprocessor holds at a time.
    programs: int


def resources(launch: Launch) -> Resources | None:
    """Of the launch's kernel on the current device; none where there is no driver to ask.

    Raises:
        RuntimeError: the kernel is not one that csrc/cuda launches, or the driver does not say.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    kernel = load(launch, torch.cuda.current_device())
    if kernel is None:
        raise RuntimeError("csrc/cuda does not launch it, and Triton does not as it is wanted")
    function, found = ctypes.c_void_p(kernel.function), ctypes.c_int()

    def answer(error: int) -> int:
        if error != 0:
            raise RuntimeError(f"the driver does not say what a kernel needs: error {error}")
        return found.value

    def attribute(number: int) -> int:
        return answer(driver.cuFuncGetAttribute(ctypes.byref(found), number, function))

    shared = ctypes.c_size_t(kernel.shared_bytes)
    return Resources(
        registers=attribute(NUM_REGS),
        local_bytes=attribute(LOCAL_SIZE_BYTES),
        shared_bytes=kernel.shared_bytes,
        programs=answer(
            driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                ctypes.byref(found), function, kernel.threads, shared
            )
        ),
    )
