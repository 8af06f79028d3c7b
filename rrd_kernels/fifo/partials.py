"""The relational loss over a memory in several parts; public through rrd_kernels.functional."""

from typing import Any

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels import validation as check
from rrd_kernels.extension import use_fused


def relational_partials(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    *,
    tau_s: float = 0.1,
    tau_t: float = 0.02,
    divergence: str = "cross_entropy",
    need_grad: bool = True,
    unit_memory: bool = False,
    precision: str | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Unnormalised softmax sums over ``memory``, one part of the memory of a relational loss.

    They are the sums of :func:`rrd_kernels.functional.relational_loss` before its divisions. With
    weights v_ij = 2^(b_ij log₂e − β_i) and w_ij = 2^(a_ij log₂e − α_i) of the student's logits b
    and the teacher's a, the sums are Σ_j v, Σ_j w, Σ_j w b, Σ_j v m_j and Σ_j w m_j. Rescaled to
    the same shifts β and α, the sums of several memories add up to the sums over all their rows.
    :func:`rrd_kernels.functional.loss_of_partials` computes the loss from them, and adds the own
    pair if it is a column.

    Args:
        z_s, z_t, memory, tau_s, unit_memory, precision, backend: as in
            :func:`rrd_kernels.functional.relational_loss`. No gradient flows through this function.
        tau_t: teacher temperature. At 0, the hard target, there are the student's sums alone, Σ_j v
            and Σ_j v m_j.
        divergence: ``"cross_entropy"`` (default), or ``"kl"``: then the third sum is Σ_j w (b − a).
        need_grad: whether to compute the sums of rows too. Default ``True``.

    Returns:
        The sums in the order above, [B, 3 + 2D], or [B, 3] without ``need_grad``; and the shifts
        (beta, alpha), [B, 2]. With a hard target [B, 1 + D] or [B, 1], and [B, 1].

        Both are float64 with float64 products, else float32. The shifts are zero if
        ``unit_memory`` is promised and kept and the temperatures allow it.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`rrd_kernels.functional.relational_loss`.

    Source: docs/decisions.md, the loss as attention.

    Example:
        >>> from rrd_kernels.functional import relational_partials
        >>> z_s, z_t = torch.randn(2, 64, 128)
        >>> sums, shifts = relational_partials(z_s, z_t, torch.randn(4096, 128))
        >>> sums.shape, shifts.shape
        (torch.Size([64, 259]), torch.Size([64, 2]))
    """
    check.check_loss(z_s, z_t, memory, tau_s, tau_t, True, divergence)
    precision = check.settle_precision(precision, z_s, z_t, memory)
    z_s, z_t = z_s.detach(), z_t.detach()
    if not use_fused(backend, z_s.device):
        return reference.relational_partials(
            z_s,
            z_t,
            memory,
            tau_s=tau_s,
            tau_t=tau_t,
            divergence=divergence,
            need_grad=need_grad,
        )
    return torch.ops.rrd_kernels.relational_partials(
        z_s,
        z_t,
        memory,
        float(tau_s),
        float(tau_t),
        unit_memory,
        divergence == "kl",
        precision,
        need_grad,
    )


class _ScaledGradient(torch.autograd.Function):
    """The gradient as a value, not a graph. ``z_s`` is an input so that autograd asks for a second
    derivative and is refused, as in csrc/autograd/derivative.cpp."""

    @staticmethod
    def forward(ctx: Any, grad_z_s: Tensor, grad_loss: Tensor, z_s: Tensor) -> Tensor:
        return (grad_z_s * grad_loss.unsqueeze(-1)).to(z_s.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "rrd_kernels: the loss of partial sums has no second derivative; relational_loss with "
            "backend='reference' has one"
        )


class _AttachedGradient(torch.autograd.Function):
    """Losses [B] with the gradient [B, D] that was computed with them."""

    @staticmethod
    def forward(ctx: Any, z_s: Tensor, losses: Tensor, grad_z_s: Tensor) -> Tensor:
        ctx.save_for_backward(grad_z_s, z_s)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_z_s, z_s = ctx.saved_tensors
        return _ScaledGradient.apply(grad_z_s, grads[0], z_s), None, None


def loss_of_partials(
    z_s: Tensor,
    sums: Tensor,
    shifts: Tensor,
    *,
    tau_s: float = 0.1,
    tau_t: float = 0.02,
    z_t: Tensor | None = None,
    own_pair: bool = False,
    divergence: str = "cross_entropy",
    reduction: str = "mean",
) -> Tensor:
    """Computes the relational loss from sums over the whole memory.

    Args:
        z_s: [B, D] student embeddings, as given to
            :func:`rrd_kernels.functional.relational_partials`. Only this argument receives a
            gradient, in its own dtype, and only if ``sums`` has the sums of rows.
        sums: [B, 3 + 2D], or [B, 3] without a gradient; from ``relational_partials``. With a hard
            target [B, 1 + D] or [B, 1].
        shifts: [B, 2], the shifts of ``sums``; [B, 1] with a hard target.
        tau_s, tau_t, divergence: as given to ``relational_partials``, with the same defaults.
        z_t: [B, D] teacher embeddings. Needed with ``own_pair`` only.
        own_pair: whether the teacher's own row is a column beside the memory's rows. Default
            ``False``. A hard target needs it.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``. For B = 0 the mean is zero.

    Returns:
        A scalar, or [B] for ``"none"``, of the dtype of ``sums``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shapes do not agree, or a value is
            out of range. A second derivative raises ``NotImplementedError``.

    Source: docs/decisions.md, the loss as attention.

    Example:
        >>> from rrd_kernels.functional import loss_of_partials, relational_partials
        >>> z_s, z_t = torch.randn(64, 128, requires_grad=True), torch.randn(64, 128)
        >>> first, second = torch.nn.functional.normalize(torch.randn(2, 4096, 128), dim=2)
        >>> parts = [relational_partials(z_s, z_t, m, unit_memory=True) for m in (first, second)]
        >>> sums, shifts = parts[0][0] + parts[1][0], parts[0][1]  # all shifts are zero
        >>> loss_of_partials(z_s, sums, shifts).backward()
    """
    check.check_rows("z_s", z_s)
    check.check_rows("sums", sums)
    check.check_rows("shifts", shifts)
    check.check_temperature("tau_s", tau_s)
    check.check_flag("own_pair", own_pair)
    check.check_target("tau_t", tau_t, own_pair)
    check.check_choice("divergence", divergence, check.DIVERGENCES)
    check.check_choice("reduction", reduction, check.REDUCTIONS)
    batch, dim = z_s.shape
    roles, scalars = (1, 1) if tau_t == 0 else (2, 3)
    widths = (scalars, scalars + roles * dim)
    if tuple(sums.shape) not in [(batch, width) for width in widths] or shifts.shape != (
        batch,
        roles,
    ):
        raise ValueError(
            f"sums and shifts must be [{batch}, {widths[0]} or {widths[1]}] and [{batch}, {roles}] "
            f"for z_s {tuple(z_s.shape)}; got {tuple(sums.shape)} and {tuple(shifts.shape)}"
        )
    if own_pair:
        check.check_alike("z_s", z_s, "z_t", check.check_rows("z_t", z_t), same_rows=True)
    need_grad = torch.is_grad_enabled() and z_s.requires_grad and sums.shape[1] > scalars
    losses, grad_z_s = reference.losses_of_partials(
        z_s,
        sums,
        shifts,
        need_grad,
        tau_s=tau_s,
        tau_t=tau_t,
        z_t=z_t if own_pair else None,
        divergence=divergence,
    )
    if grad_z_s is not None:
        losses = _AttachedGradient.apply(z_s, losses, grad_z_s)
    return reference.reduced(losses, reduction)
