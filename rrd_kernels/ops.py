"""Loads the C++ extension and registers what its operators need from Python.

The schemas are in ``csrc/schemas.cpp``. Without the extension the package works on the reference
backend; :data:`EXTENSION_ERROR` then says why it is missing.
"""

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["EXTENSION_ERROR", "why_not_fused"]

#: Whether kernels can be compiled: looked for, not imported, which takes a second.
TRITON_FOUND = importlib.util.find_spec("triton") is not None


#: What csrc/cuda leaves to Python, by the folder of rrd_kernels/triton that has it.
OPERATORS = {
    "fifo": ("triton_step", "triton_recipe", "relational_partials", "enqueue_"),
    "momentum": ("sampled_relational_loss_forward", "estimate_normalizers_", "momentum_update_"),
}


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


def _fake_loss(z_s: Tensor, precision: str | None, reduction: int) -> Tensor:
    dtype = torch.float64 if precision == "float64" else torch.float32
    return z_s.new_empty(() if reduction else z_s.shape[:1], dtype=dtype)


def _fake_forward(
    z_s: Tensor, precision: str | None, reduction: int, need_grad: bool
) -> tuple[Tensor, Tensor]:
    loss = _fake_loss(z_s, precision, reduction)
    batch, dim = z_s.shape
    return loss, loss.new_empty((batch if need_grad else 0, dim))


def _register_fakes() -> None:
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
        return _fake_loss(z_s, precision, reduction)

    @torch.library.register_fake("rrd_kernels::relational_step_")
    def _(
        memory: Tensor,
        pointer: Tensor,
        z_s: Tensor,
        z_t: Tensor,
        tau_s: float,
        tau_t: float,
        unit_memory: bool,
        precision: str | None,
        reduction: int,
        enqueue_first: bool,
        momentum: float,
    ) -> Tensor:
        return _fake_loss(z_s, precision, reduction)

    @torch.library.register_fake("rrd_kernels::relational_loss_forward")
    def _(
        z_s: Tensor,
        z_t: Tensor,
        memory: Tensor,
        tau_s: float,
        tau_t: float,
        unit_memory: bool,
        precision: str | None,
        reduction: int,
        need_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        return _fake_forward(z_s, precision, reduction, need_grad)

    @torch.library.register_fake("rrd_kernels::relational_step_forward_")
    def _(
        memory: Tensor,
        pointer: Tensor,
        z_s: Tensor,
        z_t: Tensor,
        tau_s: float,
        tau_t: float,
        unit_memory: bool,
        precision: str | None,
        reduction: int,
        enqueue_first: bool,
        momentum: float,
        need_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        return _fake_forward(z_s, precision, reduction, need_grad)

    @torch.library.register_fake("rrd_kernels::relational_partials")
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
        shifts = _fake_loss(z_s, precision, reduction=0).new_empty((batch, 2))
        return shifts.new_empty((batch, 3 + (2 * dim if need_grad else 0))), shifts

    @torch.library.register_fake("rrd_kernels::sampled_relational_loss")
    def _(
        z_s: Tensor,
        z_t: Tensor,
        memory_v1: Tensor,
        memory_v2: Tensor,
        contrast_idx: Tensor,
        normalizers: Tensor | None,
        tau_s: float,
        tau_t: float,
        nce_t: float,
        precision: str | None,
        reduction: int,
        method: str,
    ) -> Tensor:
        return _fake_loss(z_s, precision, reduction)

    @torch.library.register_fake("rrd_kernels::sampled_relational_loss_forward")
    def _(
        z_s: Tensor,
        z_t: Tensor,
        memory_v1: Tensor,
        memory_v2: Tensor,
        contrast_idx: Tensor,
        normalizers: Tensor | None,
        tau_s: float,
        tau_t: float,
        nce_t: float,
        precision: str | None,
        reduction: int,
        method: str,
        need_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        return _fake_forward(z_s, precision, reduction, need_grad)

    writes = ("enqueue_", "estimate_normalizers_", "momentum_update_", "refuse_recomputation_")
    for name in writes:
        torch.library.register_fake(f"rrd_kernels::{name}", lambda *_: None)


# A registration lasts as long as its library object.
_gpu_library: torch.library.Library | None = None


def _register_on_gpu() -> torch.library.Library:
    """Puts what csrc/cuda leaves to Python behind the CUDA key, imported at the first call."""

    def register(memory: str, name: str) -> None:
        def call(*arguments: Any) -> Any:
            operators = importlib.import_module(f"rrd_kernels.triton.{memory}.operators")
            return getattr(operators, name)(*arguments)

        library.impl(name, call, "CUDA")

    library = torch.library.Library("rrd_kernels", "IMPL")
    for memory, names in OPERATORS.items():
        for name in names:
            register(memory, name)
    return library


if EXTENSION_ERROR is None:
    _register_fakes()
    _gpu_library = _register_on_gpu()
else:
    warnings.warn(
        f"rrd_kernels runs on its plain PyTorch reference, without fused kernels: the compiled "
        f"extension could not be loaded ({EXTENSION_ERROR}).",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.lru_cache
def _family_of(index: int) -> str | None:
    from rrd_kernels.triton.cards import family_of

    return family_of(index)


def _has_pack(index: int) -> bool:
    from rrd_kernels.triton.cards import arch_of
    from rrd_kernels.triton.runtime.pack import pack_for

    return torch.version.hip is None and pack_for(arch_of(index)) is not None


def _why_not_gpu(index: int) -> str | None:
    if not TRITON_FOUND and not _has_pack(index):
        return "Triton is not installed, and there are no kernels that were compiled ahead"
    return None if _family_of(index) else "there are no block sizes for this GPU"


# What torch.compiler.assume_constant_result does, without importing the whole of Dynamo for it.
_why_not_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not_fused(device: torch.device) -> str | None:
    """Why the fused kernels do not run on ``device``.

    Args:
        device: any, whether there is one here or not.

    Returns:
        A reason for a message; ``None`` where they do.

    Source: csrc/ and rrd_kernels/triton, by what is built, installed and known of a GPU.

    Example:
        >>> from rrd_kernels.ops import why_not_fused
        >>> why_not_fused(torch.device("meta"))
        'they run on cpu and cuda, not on meta'
    """
    if EXTENSION_ERROR is not None:
        return EXTENSION_ERROR
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        return _why_not_gpu(device.index)
    return f"they run on cpu and cuda, not on {device.type}"
