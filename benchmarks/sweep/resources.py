"""What a kernel needs of a multiprocessor, as the CUDA driver has it."""

import ctypes

import torch

from rrd_kernels.triton.launch import Launch
from rrd_kernels.triton.run import load

#: CUfunction_attribute, of cuda.h.
LOCAL_SIZE_BYTES, NUM_REGS = 3, 4


def resources(launch: Launch) -> dict[str, int] | None:
    """Of a launch's kernel on the current device: registers and spilled bytes of a thread, shared
    bytes of a program, programs that a multiprocessor holds. ``None`` where there is no driver.

    Raises:
        RuntimeError: csrc/cuda does not launch the kernel, or the driver does not say.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    kernel = load(launch, torch.cuda.current_device())
    if kernel is None:
        raise RuntimeError("csrc/cuda does not launch it, and Triton does not as it is wanted")
    function, number = ctypes.c_void_p(kernel.function), ctypes.c_int()

    def answer(error: int) -> int:
        if error != 0:
            raise RuntimeError(f"the driver does not say what a kernel needs: error {error}")
        return number.value

    into, shared = ctypes.byref(number), ctypes.c_size_t(kernel.shared_bytes)
    occupancy = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
    return {
        "registers": answer(driver.cuFuncGetAttribute(into, NUM_REGS, function)),
        "spilled": answer(driver.cuFuncGetAttribute(into, LOCAL_SIZE_BYTES, function)),
        "shared": kernel.shared_bytes,
        "programs": answer(occupancy(into, function, kernel.threads, shared)),
    }
