"""What ``csrc/cuda`` leaves to Python: recipes, steps without a recipe, and other operators."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.triton.cards import MAX_DIM, MAX_ROWS, hardware_of
from rrd_kernels.triton.common.launches import cdiv
from rrd_kernels.triton.common.operators import (
    all_reduced,
    dtype_of,
    in_batches,
    on_device,
    settled,
)
from rrd_kernels.triton.fifo.launches import (
    FifoBuffers,
    FifoSettings,
    enqueue_launches,
    step_launches,
)
from rrd_kernels.triton.fifo.partials import partials_launches
from rrd_kernels.triton.runtime.launch import (
    Launch,
    Loaded,
    Place,
    Source,
    encode_launch,
    shares_storage,
)
from rrd_kernels.triton.runtime.run import load_all, run

#: Bytes; the alignment of PyTorch's allocator.
WORKSPACE_ALIGNMENT = 512

AUTOTUNE = os.environ.get("RRD_TRITON_AUTOTUNE") == "1"


def _has_kernels(z_s: Tensor, memory: Tensor, settings: FifoSettings) -> bool:
    batch, dim = z_s.shape
    double = settings.precision == "float64" or memory.dtype == torch.float64
    return batch > 0 and dim <= MAX_DIM and memory.shape[0] <= MAX_ROWS and not double


def _launches(
    z_s: Tensor, z_t: Tensor, memory: Tensor, ptr: Tensor | None, settings: FifoSettings
) -> tuple[FifoBuffers, Sequence[Launch]]:
    hardware = hardware_of(memory.device)
    plan = None
    if AUTOTUNE:
        from rrd_kernels.triton.fifo.autotune import best_plan

        plan = best_plan(z_s, z_t, memory, settings, hardware)
    return step_launches(z_s, z_t, memory, ptr, settings, hardware, plan)


def triton_step(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    ptr: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient, and the enqueue if there is one, for a step without a recipe."""
    settings = FifoSettings(*arguments)
    if _has_kernels(z_s, memory, settings):
        buffers, launches = _launches(z_s, z_t, memory, ptr, settings)
        run(launches)
        return buffers.loss, buffers.grad_z_s
    if settings.enqueue == "before" and ptr is not None:
        enqueue_(memory, ptr, z_t, settings.newest_first, settings.momentum)
    result = plain_forward(z_s, z_t, memory, settings)
    if settings.enqueue == "after" and ptr is not None:
        enqueue_(memory, ptr, z_t, settings.newest_first, settings.momentum)
    return result


def triton_recipe(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    ptr: Tensor | None,
    *arguments: Any,
) -> list[int]:
    """The recipe by which ``csrc/cuda`` launches calls of this kind; empty if it cannot."""
    settings = FifoSettings(*arguments)
    if not _has_kernels(z_s, memory, settings):
        return []
    # recipe_of identifies tensors by id: one tensor given twice needs two objects.
    inputs = z_s.detach(), z_t.detach(), memory.detach(), ptr
    buffers, launches = _launches(*inputs, settings)
    loaded = load_all(launches, memory.get_device())
    return [] if loaded is None else recipe_of(launches, loaded, buffers, inputs)


def _places(
    buffers: FifoBuffers, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]
) -> tuple[dict[int, Place], int]:
    """The place of each tensor, by its ``id``, and the size of the workspace in bytes."""
    places: dict[int, Place] = {}
    if shares_storage(buffers.grad_z_s, buffers.queries):
        places[id(buffers.queries)] = (Source.GRADIENT, 0)
    offset = 0
    for name in ("queries", "partials", "stats", "losses", "progress"):
        tensor = getattr(buffers, name)
        if id(tensor) not in places:
            places[id(tensor)] = (Source.WORKSPACE, offset)
            offset += cdiv(tensor.nbytes, WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
    places[id(buffers.loss)] = (Source.LOSS, 0)
    places[id(buffers.grad_z_s)] = (Source.GRADIENT, 0)
    for source, tensor in zip(Source, inputs, strict=False):
        if tensor is not None:
            places[id(tensor)] = (source, 0)
    return places, offset


def recipe_of(
    launches: Sequence[Launch],
    loaded: Sequence[Loaded],
    buffers: FifoBuffers,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> list[int]:
    """The launches of one step, with places instead of the tensors' addresses.

    Args:
        launches: those of the step.
        loaded: their kernels.
        buffers: the tensors that they write.
        inputs: z_s, z_t, memory and ptr, in the order of :class:`Source`.
    """
    places, workspace_bytes = _places(buffers, inputs)
    gradient = buffers.grad_z_s.untyped_storage().nbytes() // buffers.grad_z_s.element_size()
    encoded = [workspace_bytes, gradient]
    for launch, kernel in zip(launches, loaded, strict=True):
        encoded += encode_launch(launch, kernel, lambda tensor: places[id(tensor)])
    return encoded


def relational_partials(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    tau_s: float,
    tau_t: float,
    unit_memory: bool,
    kl: bool,
    precision: str | None,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The operator ``relational_partials``; see csrc/schemas.cpp."""
    # rrd_kernels.functional has checked everything; this is for callers of the bare operator.
    matrices = z_s.dim() == memory.dim() == 2 and memory.numel() > 0
    if not matrices or z_s.shape != z_t.shape or z_s.shape[1] != memory.shape[1]:
        shapes = [tuple(tensor.shape) for tensor in (z_s, z_t, memory)]
        raise ValueError(f"relational_partials: z_s, z_t and memory {shapes} do not fit")
    if not z_s.device == z_t.device == memory.device:
        raise ValueError("relational_partials: z_s, z_t and memory must be on one device")
    settings = FifoSettings(tau_s, tau_t, unit_memory, False, kl, settled(precision), 0, need_grad)
    if not _has_kernels(z_s, memory, settings):
        return plain_partials(z_s, z_t, memory, settings)
    with on_device(memory.device):
        hardware = hardware_of(memory.device)
        results, launches = partials_launches(z_s, z_t, memory, settings, hardware)
        run(launches)
    return results


def enqueue_(
    memory: Tensor, ptr: Tensor, keys: Tensor, newest_first: bool, momentum: float
) -> None:
    """The operator ``enqueue_``; see csrc/schemas.cpp."""
    # rrd_kernels.functional has checked everything; this is for callers of the bare operator.
    (batch, width), (size, dim) = keys.shape, memory.shape
    if width != dim or batch > size or ptr.dtype != torch.int64 or ptr.numel() != 1:
        raise ValueError(
            f"enqueue_: keys {tuple(keys.shape)} do not fit a memory {tuple(memory.shape)}, or ptr "
            f"is not one int64"
        )
    if not keys.device == ptr.device == memory.device:
        raise ValueError("enqueue_: memory, ptr and keys must be on one device")
    if batch == 0:
        return
    if keys.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr():
        keys = keys.clone()  # the keys are slots, which the enqueue overwrites
    with on_device(memory.device):
        run(enqueue_launches(memory, ptr, keys, newest_first, momentum))


def plain_partials(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: FifoSettings
) -> tuple[Tensor, Tensor]:
    """Sums and shifts of ``relational_partials`` by the reference, in float64 or float32."""
    dtype = dtype_of(settings.precision)
    some = functools.partial(
        reference.relational_partials,
        memory=memory.to(dtype),
        tau_s=settings.tau_s,
        tau_t=settings.tau_t,
        divergence=settings.divergence,
        need_grad=settings.need_grad,
    )
    sums, shifts = in_batches(some, memory.shape[0], z_s.to(dtype), z_t.to(dtype))
    return sums, shifts


@torch.no_grad()
def plain_forward(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: FifoSettings
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of ``relational_loss_forward`` by the reference: float64 or float32."""
    sums, shifts = plain_partials(z_s, z_t, memory, settings)
    losses, grad = reference.losses_of_partials(
        z_s,
        sums,
        shifts,
        settings.need_grad,
        tau_s=settings.tau_s,
        tau_t=settings.tau_t,
        z_t=z_t if settings.own_pair else None,
        divergence=settings.divergence,
    )
    grad = sums.new_empty(0, z_s.shape[1]) if grad is None else grad
    loss, grad = all_reduced(settings.reduction, losses, grad)
    return loss, grad
