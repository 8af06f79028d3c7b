"""Loads the C++ extension and registers what its operators need from Python.

The schemas are in ``csrc/rrd.cpp``. Without the extension the package works on the reference
backend; :data:`EXTENSION_ERROR` then says why it is missing.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor

#: Device types that have fused kernels.
FUSED_DEVICES = ("cpu",)


def _load_extension() -> str | None:
    libraries = sorted(Path(__file__).parent.glob("_C*.so"))
    if not libraries:
        return f"it has not been built in {Path(__file__).parent}"
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:  # built against another PyTorch, most often
        return str(error)
    built = torch.ops.rrd_kernels.torch_version()
    if built.split(".")[:2] != torch.__version__.split(".")[:2]:
        return f"it was built against PyTorch {built}, and this is {torch.__version__}"
    return None


#: Why the extension could not be loaded; ``None`` when it is there.
EXTENSION_ERROR: str | None = _load_extension()


def _register_fakes() -> None:
    @torch.library.register_fake("rrd_kernels::relational_loss_forward")
    def _(
        z_s: Tensor,
        z_t: Tensor,
        memory: Tensor,
        tau_s: float,
        tau_t: float,
        unit_memory: bool,
        precision: str | None,
        need_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        batch, dim = z_s.shape
        dtype = torch.float64 if precision == "float64" else torch.float32
        loss = z_s.new_empty(batch, dtype=dtype)
        return loss, z_s.new_empty((batch if need_grad else 0, dim), dtype=dtype)

    @torch.library.register_fake("rrd_kernels::relational_loss")
    def _(
        z_s: Tensor,
        z_t: Tensor,
        memory: Tensor,
        tau_s: float,
        tau_t: float,
        unit_memory: bool,
        precision: str | None,
        reduction: int,
    ) -> Tensor:
        dtype = torch.float64 if precision == "float64" else torch.float32
        return z_s.new_empty(() if reduction else z_s.shape[:1], dtype=dtype)

    @torch.library.register_fake("rrd_kernels::enqueue_")
    def _(memory: Tensor, pointer: Tensor, keys: Tensor, momentum: float) -> None:
        return None


if EXTENSION_ERROR is None:
    _register_fakes()
else:
    warnings.warn(
        f"rrd_kernels runs on its plain PyTorch reference, without fused kernels: the compiled "
        f"extension could not be loaded ({EXTENSION_ERROR}).",
        RuntimeWarning,
        stacklevel=3,
    )


def fused_available(device: torch.device) -> bool:
    """Whether the fused kernels run on ``device``."""
    return EXTENSION_ERROR is None and device.type in FUSED_DEVICES
