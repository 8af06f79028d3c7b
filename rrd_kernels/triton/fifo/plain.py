"""The FIFO memory's operators where there are no kernels."""

import functools

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.triton.common.plain import dtype_of, in_chunks, reduced
from rrd_kernels.triton.fifo.launches import FifoSettings


def plain_partials(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: FifoSettings
) -> tuple[Tensor, Tensor]:
    """Sums and shifts as ``relational_partials`` has them, in float64 or float32."""
    dtype = dtype_of(settings.precision)
    some = functools.partial(
        reference.relational_partials,
        memory=memory.to(dtype),
        tau_s=settings.tau_s,
        tau_t=settings.tau_t,
        need_grad=settings.need_grad,
    )
    return in_chunks(some, memory.shape[0], z_s.to(dtype), z_t.to(dtype))


@torch.no_grad()
def plain_forward(
    z_s: Tensor, z_t: Tensor, memory: Tensor, settings: FifoSettings
) -> tuple[Tensor, Tensor]:
    """Loss and gradient as ``relational_loss_forward`` has them, in float64 or float32."""
    sums, shifts = plain_partials(z_s, z_t, memory, settings)
    losses, grad = reference.losses_of_partials(
        z_s, sums, shifts, settings.tau_s, settings.need_grad
    )
    return reduced(
        losses, sums.new_empty(0, z_s.shape[1]) if grad is None else grad, settings.reduction
    )
