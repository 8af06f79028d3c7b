"""The functions of :mod:`rrd_kernels.functional` in plain PyTorch: the reference of every test.

They are slow: they make [B, K] matrices and copies and use autograd's own gradient. The function of
the same name in :mod:`rrd_kernels.functional` has the documentation. Arguments that choose a kernel
are missing here. Inputs are not checked, so errors are PyTorch's own. Only indices are checked:
PyTorch would take some dtypes for masks.
"""

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.transforms import outside
from rrd_kernels.validation import Number

__all__ = [
    "enqueue_",
    "estimate_normalizers_",
    "momentum_update_",
    "relational_loss",
    "relational_partials",
    "relational_step_",
    "sampled_contrastive_loss",
    "sampled_relational_loss",
]


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast, which would round the logits, is off inside. It does not know meta."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def _unit(rows: Tensor) -> Tensor:
    """``F.normalize(rows, dim=1)``, also where a row's squares overflow or underflow."""
    scale = rows.detach().abs().amax(1, keepdim=True).clamp_min(1e-12)
    scaled = rows / scale
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.maximum(length, 1e-12 / scale)


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The losses [B], their mean (zero for B = 0) or their sum."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total / max(loss.shape[0], 1) if reduction == "mean" else total


def relational_loss(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    *,
    tau_s: Number = 0.1,
    tau_t: Number = 0.02,
    own_pair: bool = False,
    divergence: str = "cross_entropy",
    reduction: str = "mean",
) -> Tensor:
    """Reference of :func:`rrd_kernels.functional.relational_loss`.

    Computes in float64 if an input is float64, else in float32. The memory is copied:
    it may change before backward.
    """
    with _without_autocast(z_s.device):
        dtype = _compute_dtype(z_s, z_t, memory)
        rows = memory.detach().to(dtype, copy=True)
        student = F.normalize(z_s.to(dtype), dim=1)
        teacher = F.normalize(z_t.detach().to(dtype), dim=1)
        b, a = student @ rows.T, teacher @ rows.T
        if own_pair:
            own = (student * teacher).sum(1, keepdim=True), (teacher * teacher).sum(1, keepdim=True)
            b, a = torch.cat([own[0], b], 1), torch.cat([own[1], a], 1)
        loss = divergence_of(b / tau_s, _target(a, tau_t, own_pair), divergence)
    return reduced(loss, reduction)


def _target(similarities: Tensor, tau_t: Number, own_pair: bool) -> Tensor:
    """The target's probabilities. At ``tau_t`` = 0 the first column, the own pair, has all."""
    if not own_pair:
        return (similarities / tau_t).softmax(dim=1)
    first = torch.zeros_like(similarities)
    first[:, 0] = 1.0
    if not isinstance(tau_t, Tensor):
        return (similarities / tau_t).softmax(dim=1) if tau_t else first
    # Without a branch: in a graph of torch.compile the temperature has no value.
    hard = (tau_t == 0).to(similarities)
    return hard * first + (1 - hard) * (similarities / (tau_t + (tau_t == 0))).softmax(dim=1)


def cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The losses [B] of logits [B, K]."""
    return divergence_of(student_logits, teacher_logits.softmax(dim=1), "cross_entropy")


def divergence_of(student_logits: Tensor, target: Tensor, divergence: str) -> Tensor:
    """The losses [B] of the student's logits [B, K] and the target's probabilities."""
    loss = -(target * student_logits.log_softmax(dim=1)).sum(dim=1)
    return loss + torch.xlogy(target, target).sum(dim=1) if divergence == "kl" else loss


@torch.no_grad()
def relational_partials(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    *,
    tau_s: float = 0.1,
    tau_t: float = 0.02,
    divergence: str = "cross_entropy",
    need_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    """Reference of :func:`rrd_kernels.functional.relational_partials`.

    Computes in float64 if an input is float64, else in float32. The shifts are each
    sample's largest b and a, times log2(e).
    """
    with _without_autocast(z_s.device):
        dtype = _compute_dtype(z_s, z_t, memory)
        rows = memory.to(dtype)
        logits = [F.normalize(z_s.to(dtype), dim=1) @ rows.T / tau_s]
        if tau_t != 0:
            logits.append(F.normalize(z_t.to(dtype), dim=1) @ rows.T / tau_t)
        shifts = torch.stack([logit.amax(1) for logit in logits], 1)
        weights = [
            (logit - shift[:, None]).exp()
            for logit, shift in zip(logits, shifts.unbind(1), strict=True)
        ]
        sums = [weight.sum(1, keepdim=True) for weight in weights]
        if tau_t != 0:
            b, a = logits
            times = b - a if divergence == "kl" else b
            sums.append((weights[1] * times).sum(1, keepdim=True))
        if need_grad:
            sums += [weight @ rows for weight in weights]
        return torch.cat(sums, 1), shifts * math.log2(math.e)


def rescaled(sums: Tensor, shifts: Tensor, common: Tensor) -> Tensor:
    """The sums of :func:`relational_partials` at the shifts ``common`` in place of ``shifts``."""
    factor = torch.exp2(shifts - common)
    if shifts.shape[1] == 1:
        return sums * factor
    student, teacher = factor.split(1, dim=1)
    scalars = [student, teacher, teacher]
    width = (sums.shape[1] - 3) // 2
    rows = [student.expand(-1, width), teacher.expand(-1, width)]
    return sums * torch.cat(scalars + rows, 1)


def _sums_of_own_pair(
    z_s: Tensor, z_t: Tensor, like: Tensor, tau_s: float, tau_t: float, divergence: str
) -> tuple[Tensor, Tensor]:
    """The sums of :func:`relational_partials`, as wide as ``like``, over one column: t_i."""
    own = _unit(z_t.to(like.dtype))
    b = (_unit(z_s.to(like.dtype)) * own).sum(1, keepdim=True) / tau_s
    logits, sums = [b], [torch.ones_like(b)]
    if tau_t != 0:
        a = (own * own).sum(1, keepdim=True) / tau_t
        logits, sums = [b, a], [*sums, *sums, b - a if divergence == "kl" else b]
    if like.shape[1] > len(sums):
        sums += [own] * len(logits)
    return torch.cat(sums, 1), torch.cat(logits, 1) * math.log2(math.e)


@torch.no_grad()
def losses_of_partials(
    z_s: Tensor,
    sums: Tensor,
    shifts: Tensor,
    need_grad: bool,
    *,
    tau_s: float,
    tau_t: float = 0.02,
    z_t: Tensor | None = None,
    divergence: str = "cross_entropy",
) -> tuple[Tensor, Tensor | None]:
    """The losses [B] from sums over the whole memory, and their gradient [B, D] for ``z_s``.

    Args:
        z_s, sums, shifts, tau_s, tau_t, divergence: as in
            :func:`rrd_kernels.functional.loss_of_partials`.
        z_t: [B, D] if the own pair is a column too; else ``None``.
        need_grad: whether to compute the gradient.

    Source: docs/decisions.md, the loss as attention.
    """
    if z_t is not None:
        more, its_shifts = _sums_of_own_pair(z_s, z_t, sums, tau_s, tau_t, divergence)
        common = torch.maximum(shifts, its_shifts)
        sums = rescaled(sums, shifts, common) + rescaled(more, its_shifts, common)
        shifts = common
    log_sums = sums[:, : shifts.shape[1]].log() + shifts * math.log(2)
    if z_t is not None and tau_t == 0:  # all of the target's weight is on the own pair
        losses = log_sums[:, 0] - its_shifts[:, 0] * math.log(2)
    else:
        losses = log_sums[:, 0] - sums[:, 2] / sums[:, 1]
    if divergence == "kl" and tau_t != 0:
        losses = losses - log_sums[:, 1]
    if not need_grad:
        return losses, None
    if z_t is not None and tau_t == 0:
        student, target = sums[:, 1:], _unit(z_t.to(sums.dtype))
    else:
        student, target = sums[:, 3:].chunk(2, 1)
        target = target / sums[:, 1:2]
    return losses, through_normalize(z_s, (student / sums[:, :1] - target) / tau_s)


def through_normalize(z_s: Tensor, grad: Tensor) -> Tensor:
    """The gradient for ``z_s`` from the gradient for its unit rows."""
    z_s = z_s.to(grad.dtype)
    scale = z_s.abs().amax(1, keepdim=True).clamp_min(1e-12)
    length = torch.linalg.vector_norm(z_s / scale, dim=1, keepdim=True) * scale
    unit = _unit(z_s)
    along = torch.where(length > 1e-12, (grad * unit).sum(1, keepdim=True), 0.0)
    return (grad - along * unit) / length.clamp_min(1e-12)


def _moved(old: Tensor, new: Tensor, momentum: Number) -> Tensor:
    """Rows moved from ``old`` towards the unit rows of ``new``, in the dtype of the computation."""
    dtype = _compute_dtype(old, new)
    unit = _unit(new.to(dtype))
    # A tensor has no value yet where torch.compile traces it.
    if isinstance(momentum, Tensor) or momentum:
        unit = _unit(momentum * old.to(dtype) + (1 - momentum) * unit)
    return unit


@outside
@torch.no_grad()
def enqueue_(
    memory: Tensor,
    ptr: Tensor,
    keys: Tensor,
    *,
    newest_first: bool = False,
    momentum: Number = 0.0,
) -> None:
    """Reference of :func:`rrd_kernels.functional.enqueue_`.

    Computes in float64 if an input is float64, else in float32.
    """
    size, batch = memory.shape[0], keys.shape[0]
    if newest_first:
        ptr.sub_(batch)
    slots = (ptr % size + torch.arange(batch, device=memory.device)) % size
    new = _moved(memory[slots], keys, momentum)
    finite = keys.isfinite().all(dim=1, keepdim=True)
    memory[slots] = torch.where(finite, new.to(memory.dtype), memory[slots])
    ptr.copy_((ptr if newest_first else ptr + batch) % size)


def apart(memory: Tensor, *rows: Tensor) -> list[Tensor]:
    """Copies the ``rows`` that are rows of ``memory``: they must not change while it is written."""
    if torch.compiler.is_compiling():
        return list(rows)
    is_alias = torch._C._is_alias_of  # type: ignore[attr-defined]
    return [z.clone() if is_alias(z, memory) else z for z in rows]


def relational_step_(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    ptr: Tensor,
    *,
    tau_s: Number = 0.1,
    tau_t: Number = 0.02,
    own_pair: bool = False,
    divergence: str = "cross_entropy",
    enqueue: str = "before",
    newest_first: bool = False,
    momentum: Number = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Reference of :func:`rrd_kernels.functional.relational_step_`.

    Runs enqueue and loss one after the other.
    """
    if enqueue == "before":
        z_s, z_t = apart(memory, z_s, z_t)
        enqueue_(memory, ptr, z_t, newest_first=newest_first, momentum=momentum)
    loss = relational_loss(
        z_s,
        z_t,
        memory,
        tau_s=tau_s,
        tau_t=tau_t,
        own_pair=own_pair,
        divergence=divergence,
        reduction=reduction,
    )
    if enqueue == "after":
        enqueue_(memory, ptr, z_t, newest_first=newest_first, momentum=momentum)
    return loss


def _sampled_logits(
    unit: Tensor,
    memory: Tensor,
    contrast_idx: Tensor,
    normalizer: Tensor | None,
    tau: Number,
    nce_t: Number,
) -> Tensor:
    """[B, P] logits of unit rows against the sampled rows."""
    rows = memory.detach()[check.as_int64("contrast_idx", contrast_idx)].to(unit.dtype)
    similarity = torch.einsum("bd,bpd->bp", unit, rows)
    if normalizer is not None:
        z = torch.where(normalizer > 0, normalizer, torch.nan)
        similarity = torch.exp(similarity / nce_t) / z.to(unit.dtype)
    return similarity / tau


def sampled_relational_loss(
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    normalizers: Tensor | None = None,
    *,
    tau_s: Number = 0.1,
    tau_t: Number = 0.02,
    nce_t: Number = 0.07,
    reduction: str = "mean",
) -> Tensor:
    """Reference of :func:`rrd_kernels.functional.sampled_relational_loss`.

    Computes in float64 if an input is float64, else in float32.
    """
    views = z_s, z_t, memory_v1, memory_v2, contrast_idx
    with _without_autocast(z_s.device):
        loss = cross_entropy(*sampled_logits(*views, normalizers, tau_s, tau_t, nce_t))
    return reduced(loss, reduction)


def sampled_logits(
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    normalizers: Tensor | None,
    tau_s: Number,
    tau_t: Number,
    nce_t: Number,
) -> tuple[Tensor, Tensor]:
    """The student's logits [B, P] and the teacher's, of :func:`sampled_relational_loss`."""
    dtype = _compute_dtype(z_s, z_t, memory_v1, memory_v2)
    student = F.normalize(z_s.to(dtype), dim=1)
    teacher = F.normalize(z_t.detach().to(dtype), dim=1)
    z_v1, z_v2 = (None, None) if normalizers is None else normalizers.detach().unbind()
    b = _sampled_logits(student, memory_v2, contrast_idx, z_v1, tau_s, nce_t)
    return b, _sampled_logits(teacher, memory_v1, contrast_idx, z_v2, tau_t, nce_t)


#: Added to a probability's denominator in the published loss.
CONTRASTIVE_EPS = 1e-7


def sampled_contrastive_loss(
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    normalizers: Tensor,
    *,
    nce_t: Number = 0.07,
    reduction: str = "mean",
) -> Tensor:
    """Reference of :func:`rrd_kernels.functional.sampled_contrastive_loss`.

    Computes in float64 if an input is float64, else in float32.
    """
    views = z_s, z_t, memory_v1, memory_v2, contrast_idx
    _, excess = contrastive_constants(contrast_idx.shape[1] - 1, memory_v1.shape[0])
    with _without_autocast(z_s.device):
        logits = torch.cat(contrastive_logits(*views, normalizers, nce_t), 1)
        loss = F.softplus(logits, threshold=40).sum(1) + 2 * excess
    return reduced(loss, reduction)


def contrastive_constants(negatives: int, n_data: int) -> tuple[float, float]:
    """K / n_data + EPS, which x is compared with; and what the published loss of a view has more
    than a cross-entropy, as a negative's probability has K / n_data alone in the numerator."""
    noise = negatives / n_data + CONTRASTIVE_EPS
    if not negatives:
        return noise, 0.0
    return noise, negatives * math.log1p(CONTRASTIVE_EPS * n_data / negatives)


def contrastive_logits(
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    normalizers: Tensor,
    nce_t: Number,
) -> list[Tensor]:
    """Both views' logits [B, P], the student's first, of :func:`sampled_contrastive_loss`; the
    positive's negated, because softplus(h) - h cancels once it is well told apart."""
    dtype = _compute_dtype(z_s, z_t, memory_v1, memory_v2)
    noise, _ = contrastive_constants(contrast_idx.shape[1] - 1, memory_v1.shape[0])
    found = []
    views = zip((z_s, z_t), (memory_v2, memory_v1), normalizers.detach().unbind(), strict=True)
    for z, memory, z_n in views:
        unit = F.normalize(z.to(dtype), dim=1)
        similarity = _sampled_logits(unit, memory, contrast_idx, None, nce_t, nce_t)
        shift = torch.where(z_n > 0, z_n, torch.nan).to(dtype).log() + math.log(noise)
        logits = similarity - shift
        found.append(torch.cat([-logits[:, :1], logits[:, 1:]], 1))
    return found


@outside
@torch.no_grad()
def estimate_normalizers_(
    normalizers: Tensor,
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    *,
    nce_t: Number = 0.07,
) -> None:
    """Reference of :func:`rrd_kernels.functional.estimate_normalizers_`.

    Computes in float64 if an input is float64, else in float32.
    """
    if contrast_idx.numel() != 0:
        views = z_s, z_t, memory_v1, memory_v2, contrast_idx
        normalizers.copy_(estimated_normalizers(normalizers, views, nce_t))


@torch.no_grad()
def estimated_normalizers(normalizers: Tensor, views: tuple[Tensor, ...], nce_t: Number) -> Tensor:
    """What :func:`estimate_normalizers_` writes; ``views`` are its tensors from ``z_s`` on."""
    z_s, z_t, memory_v1, memory_v2, contrast_idx = views
    found = []
    dtype = _compute_dtype(z_s, z_t, memory_v1, memory_v2)
    for z, memory in ((z_s, memory_v2), (z_t, memory_v1)):
        unit = F.normalize(z.to(dtype), dim=1)
        similarity = _sampled_logits(unit, memory, contrast_idx, None, nce_t, nce_t)
        found.append(similarity.exp().mean() * memory.shape[0])
    value = torch.stack(found).to(normalizers.dtype)
    unset = (normalizers < 0) & value.isfinite()
    return torch.where(unset, value, normalizers)


@outside
@torch.no_grad()
def momentum_update_(memory: Tensor, index: Tensor, rows: Tensor, momentum: Number = 0.5) -> None:
    """Reference of :func:`rrd_kernels.functional.momentum_update_`.

    Computes in float64 if an input is float64, else in float32.
    """
    index = check.as_int64("index", index)
    batch = torch.arange(index.shape[0], device=index.device)
    same = index[:, None] == index[None, :]
    last = (same * batch).amax(1) if batch.numel() else batch
    old = memory[index]
    new = _moved(old, rows, momentum).to(memory.dtype)
    finite = rows.isfinite().all(dim=1, keepdim=True)
    # Every occurrence writes what the last one does.
    memory[index] = torch.where(finite, new, old)[last]
