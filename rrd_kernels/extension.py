"""Loads the C++ extension, registers the Python parts of its operators and chooses the backend.

The operators' schemas are in ``csrc/schemas.cpp``. Without the extension the package runs on the
reference backend, and ``rrd_kernels.extension.EXTENSION_ERROR`` says why it could not be loaded.
"""

import functools
import multiprocessing
import os
import sys
import warnings
from typing import Any

import torch

from rrd_kernels import loading, transforms
from rrd_kernels import validation as check
from rrd_kernels.triton.runtime.installed import triton_found

__all__ = ["EXTENSION_ERROR", "why_not_fused"]

#: Whether Triton is installed.
TRITON_FOUND = triton_found()


#: CUDA operators that are implemented in Python, by their folder in rrd_kernels/triton.
OPERATORS = {
    "fifo": ("triton_step", "triton_recipe", "relational_partials", "enqueue_"),
    "momentum": (
        *("sampled_relational_loss_forward", "sampled_contrastive_loss_forward"),
        *("estimate_normalizers_", "momentum_update_"),
    ),
}

#: Operators whose twin, scheduled_ and the name, takes numbers as tensors (csrc/scheduled.cpp).
WITH_TWINS = (
    *("relational_loss", "relational_loss_forward", "relational_step_", "relational_step_forward_"),
    *("sampled_relational_loss", "sampled_relational_loss_forward"),
    *("sampled_contrastive_loss", "sampled_contrastive_loss_forward"),
    *("enqueue_", "estimate_normalizers_", "momentum_update_"),
)

#: Operators that torch.compile traces: each needs a fake implementation.
WITH_FAKES = (
    *WITH_TWINS,
    *(f"scheduled_{name}" for name in WITH_TWINS),
    *("relational_partials", "refuse_recomputation_"),
)


#: The library that was chosen, ``None`` if there is none; and why it could not be loaded, ``None``
#: if it was.
LIBRARY, EXTENSION_ERROR = loading.load()


def _register_fakes() -> None:
    """Registers fakes: output shapes and dtypes, from the arguments by their schema names."""

    def register(name: str) -> None:
        schema = getattr(torch.ops.rrd_kernels, name).default._schema
        names = [argument.name for argument in schema.arguments]

        def fake(*arguments: Any) -> Any:
            given = dict(zip(names, arguments, strict=True))
            if not schema.returns:
                return None
            batch = given["z_s"].shape[0]
            dtype = torch.float64 if given["precision"] == "float64" else torch.float32
            empty = functools.partial(given["z_s"].new_empty, dtype=dtype)
            if name == "relational_partials":
                roles, scalars = (2, 3) if given["tau_t"] else (1, 1)
                rows = roles * given["z_s"].shape[1] if given["need_grad"] else 0
                return empty((batch, scalars + rows)), empty((batch, roles))
            loss = empty(() if given["reduction"] else (batch,))
            needed = [given[n] for n in names if n.startswith("need_grad")]
            grads = (empty((batch if need else 0, given["z_s"].shape[1])) for need in needed)
            return (loss, *grads) if needed else loss

        torch.library.register_fake(f"rrd_kernels::{name}", fake)

    for name in WITH_FAKES:
        register(name)


def _warn_once() -> None:
    """Warns at the line that imports the package.

    Not in a worker, of a data loader for example, nor in another rank, which would only repeat it;
    nor for ``python -m rrd_kernels``, which prints it anyway.
    """
    process = multiprocessing.current_process()
    # The second holds while a spawned worker imports the script, before it knows its parent.
    spawned = multiprocessing.parent_process() or getattr(process, "_inheriting", False)
    # While Python looks for a module to run, its packages are imported and argv[0] is "-m".
    reports = sys.argv[:1] == ["-m"] and "rrd_kernels" in sys.orig_argv
    if spawned or reports or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    frame = sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith(("rrd_kernels", "importlib")):
        frame = frame.f_back
    warnings.warn_explicit(
        f"rrd_kernels runs on its plain PyTorch reference, without fused kernels, because its "
        f"compiled extension could not be loaded ({EXTENSION_ERROR}).",
        RuntimeWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module="rrd_kernels",  # what filters name
    )


# A registration lasts as long as its library object.
_gpu_library: torch.library.Library | None = None


def _register_on_gpu() -> torch.library.Library:
    """Registers :data:`OPERATORS` for CUDA; their modules are imported at the first call."""

    def register(memory: str, name: str) -> None:
        def call(*arguments: Any) -> Any:
            from rrd_kernels.triton.fifo import operators as fifo
            from rrd_kernels.triton.momentum import operators as momentum

            return getattr(fifo if memory == "fifo" else momentum, name)(*arguments)

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
    _warn_once()


@functools.lru_cache
def _family_of(index: int) -> str | None:
    from rrd_kernels.triton.cards import family_of

    return family_of(index)


@functools.lru_cache
def _has_gpus() -> bool:
    return torch.cuda.is_available()


def _has_pack(index: int) -> bool:
    from rrd_kernels.triton.cards import arch_of
    from rrd_kernels.triton.runtime.pack import pack_for

    return torch.version.hip is None and pack_for(arch_of(index)) is not None


def _why_not_gpu(index: int) -> str | None:
    if not _has_gpus():
        # With fake tensors the fakes run, for any device.
        fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        return "PyTorch finds no CUDA GPU" if fake is None else None
    if not TRITON_FOUND and not _has_pack(index):
        return "Triton is not installed, and there is no pack of kernels compiled ahead of time"
    return None if _family_of(index) else "there are no block sizes for this GPU"


# As torch.compiler.assume_constant_result does, but without importing Dynamo.
_why_not_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not_fused(device: torch.device) -> str | None:
    """Returns the reason why the fused kernels do not run on ``device``.

    Args:
        device: any device, whether this machine has it or not.

    Returns:
        The reason as text, or ``None`` if the fused kernels run on ``device``.

    Source: the kernels in ``csrc/`` and ``rrd_kernels/triton``: which of them are built, whether
    Triton is installed, and which GPUs have block sizes.

    Example:
        >>> from rrd_kernels.extension import why_not_fused
        >>> why_not_fused(torch.device("mps"))
        'fused kernels run on cpu and cuda, not on mps'
    """
    if EXTENSION_ERROR is not None:
        return EXTENSION_ERROR
    if device.type in ("cpu", "meta"):  # on meta the fakes run
        return None
    if device.type == "cuda":
        return _why_not_gpu(device.index)
    return f"fused kernels run on cpu and cuda, not on {device.type}"


def operator(name: str, number: object) -> Any:
    """The operator ``name``; its scheduled twin if ``number`` is a tensor. ``number`` is one of its
    numbers, as :func:`rrd_kernels.validation.settle_numbers` returns them."""
    twin = "" if isinstance(number, float) else "scheduled_"
    return getattr(torch.ops.rrd_kernels, twin + name)


def use_fused(backend: str, device: torch.device) -> bool:
    """Whether ``backend`` selects fused kernels on ``device``. Raises for ``"fused"`` where there
    are none."""
    check.check_choice("backend", backend, check.BACKENDS)
    if backend == "reference":
        return False
    reason = why_not_fused(device)
    if reason is None and transforms.are_running():
        reason = "torch.func and forward-mode derivatives need backend='reference'"
    if backend == "fused" and reason is not None:
        raise RuntimeError(
            f"backend='fused' cannot run on {device}: {reason}. Use backend='auto' or 'reference'"
        )
    return reason is None
