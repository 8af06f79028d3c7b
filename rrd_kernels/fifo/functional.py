"""The operators of the FIFO memory, as functions; public through rrd_kernels.functional."""

from typing import Any

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels import validation as check
from rrd_kernels.extension import operator, use_fused
from rrd_kernels.recomputation import may_write
from rrd_kernels.validation import Number


def _check_loss(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    tau_s: Number,
    tau_t: Number,
    own_pair: bool,
    divergence: str,
    reduction: str,
) -> None:
    check.check_loss(z_s, z_t, memory, tau_s, tau_t, own_pair, divergence)
    check.check_choice("reduction", reduction, check.REDUCTIONS)


def _check_write(
    memory: Tensor, ptr: Tensor, name: str, keys: Tensor, newest_first: bool, momentum: Number
) -> None:
    """Checks a write of ``keys``, called ``name`` in errors; their width is checked already."""
    check.check_flag("newest_first", newest_first)
    check.check_writable("memory", memory)
    check.check_ptr(ptr, memory)
    check.check_momentum("momentum", momentum)
    check.check_fits(name, keys, memory)


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
    unit_memory: bool = False,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Divergence of the student's relations to a memory from the teacher's.

    With s_i and t_i the normalised rows of ``z_s`` and ``z_t``, and m_j the rows of ``memory`` as
    they are::

        loss_i = − Σ_j softmax_j(t_i·m_j / τ_t) log softmax_j(s_i·m_j / τ_s)

    With ``own_pair`` the sums have one more column, m_0 = t_i.

    One pass over the memory computes the loss and its gradient. No [B, K] matrix is made, and
    backward does not read the memory.

    Args:
        z_s: [B, D] student embeddings, unnormalised; float64, float32, bfloat16 or float16, any
            strides. Only this argument receives a gradient, in its own dtype.
        z_t: [B, D] teacher embeddings, unnormalised; same choice of dtypes.
        memory: [K, D] earlier teacher rows, not normalised here; same choice of dtypes.
        tau_s: student temperature, positive: a number, or a CPU tensor with one element and without
            a gradient. Default 0.1.
        tau_t: teacher temperature, likewise. Default 0.02. With ``own_pair`` it may be 0, the hard
            target: the own pair has probability one, as in InfoNCE, the limit for τ_t → 0. This
            takes half the time, because the teacher is not compared with the memory.
        own_pair: whether the teacher's own row t_i is a column beside the memory's rows. Default
            ``False``.
        divergence: ``"cross_entropy"`` (default), or ``"kl"``, which is smaller by the entropy of
            the teacher's softmax. The gradient is the same.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``. For B = 0 the mean is zero.
        unit_memory: promises that no row of the memory has a norm above 1, apart from rounding.
            The softmax then needs no running maximum. Default ``False``. A broken promise is
            detected where it matters: it costs a second pass, and the result is still right.
        precision: format of the products' operands: ``"float64"``, ``"float32"``, ``"tf32"``,
            ``"float16"`` or ``"bfloat16"``. Sums are float32, or float64 with ``"float64"``.
            Default: the dtype that the three tensors promote to; float32 follows
            :func:`torch.get_float32_matmul_precision`. If a device has no unit for a format, a
            finer format is used: a CPU computes ``"tf32"`` and ``"float16"`` in float32, and
            ``"bfloat16"`` too unless it has AMX or AVX512-BF16. The reference backend always
            computes in float64 if an input is float64, else in float32.
        backend: ``"auto"`` (default: fused kernels where there are any), ``"fused"`` (raises where
            there are none) or ``"reference"`` (plain PyTorch, twice differentiable).

    Returns:
        A scalar, or [B] for ``"none"``; float64 with float64 products, else float32.

    Raises:
        TypeError: an argument has the wrong type, or a tensor is sparse, integer, complex or a
            DTensor.
        ValueError: shapes or devices do not agree, or a value is out of range.
        RuntimeError: ``backend="fused"`` without fused kernels. A second derivative raises
            ``NotImplementedError``, a subclass.

    Source: arXiv 2407.12073; the form computed here is derived in docs/decisions.md. Other methods
    of this form are listed in docs/methods.md.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import relational_loss
        >>> z_s = torch.randn(64, 128, requires_grad=True)
        >>> z_t, memory = torch.randn(64, 128), torch.randn(16384, 128)
        >>> relational_loss(z_s, z_t, memory).backward()
        >>> z_s.grad.shape
        torch.Size([64, 128])
    """
    _check_loss(z_s, z_t, memory, tau_s, tau_t, own_pair, divergence, reduction)
    precision = check.settle_precision(precision, z_s, z_t, memory)
    tau_s, tau_t = check.settle_numbers(tau_s, tau_t)
    if not use_fused(backend, z_s.device):
        return reference.relational_loss(
            z_s,
            z_t,
            memory,
            tau_s=tau_s,
            tau_t=tau_t,
            own_pair=own_pair,
            divergence=divergence,
            reduction=reduction,
        )
    return operator("relational_loss", tau_s)(
        z_s,
        z_t,
        memory,
        tau_s,
        tau_t,
        unit_memory,
        own_pair,
        divergence == "kl",
        precision,
        check.REDUCTIONS.index(reduction),
    )


def enqueue_(
    memory: Tensor,
    ptr: Tensor,
    keys: Tensor,
    *,
    newest_first: bool = False,
    momentum: Number = 0.0,
    backend: str = "auto",
) -> None:
    """Writes the normalised ``keys`` into a ring of slots, in place and without a host sync.

    For the i-th key, slot ``(ptr + i) % K`` becomes
    ``normalize(momentum * slot + (1 - momentum) * normalize(key))``. Then ``ptr`` becomes
    ``(ptr + B) % K``. If a key is not finite, its slot does not change.

    Args:
        memory: [K, D] slots; float64, float32, bfloat16 or float16, any strides, changed in place.
        ptr: int64 [1], the slot of the first key, on the memory's device, changed in place.
        keys: [B, D] rows, unnormalised, with B <= K; same choice of dtypes.
        newest_first: whether the ring grows downwards. The keys then take the slots from
            ``ptr - B`` on, and ``ptr`` becomes ``(ptr - B) % K``. From ``ptr`` on, the memory is in
            the order of a queue that shifts by B rows and puts the new batch first. Default
            ``False``.
        momentum: weight of the slot's old row, in [0, 1). Default 0: the plain FIFO write.
        backend: ``"auto"`` (default), ``"fused"`` or ``"reference"``.

    Returns nothing; writes ``memory`` and ``ptr``.

    Raises:
        TypeError: an argument has the wrong type, or a tensor is sparse, integer, complex or a
            DTensor.
        ValueError: B > K, widths or devices do not agree, the momentum is out of range, or the
            memory is expanded or requires a gradient. Nothing is written then.
        RuntimeError: ``backend="fused"`` without fused kernels.

    Source: the published code of arXiv 2407.12073, with wrapping, momentum and the check for
    finite keys added.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import enqueue_
        >>> memory, ptr = torch.zeros(4, 2), torch.tensor([3])
        >>> enqueue_(memory, ptr, torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        >>> memory[3], memory[0], ptr
        (tensor([0.6000, 0.8000]), tensor([0., 1.]), tensor([1]))
    """
    check.check_rows("memory", memory)
    check.check_rows("keys", keys)
    check.check_alike("keys", keys, "memory", memory, same_rows=False)
    check.check_not_empty("memory", memory)
    _check_write(memory, ptr, "keys", keys, newest_first, momentum)
    (momentum,) = check.settle_numbers(momentum)
    if not use_fused(backend, memory.device):
        reference.enqueue_(memory, ptr, keys, newest_first=newest_first, momentum=momentum)
        return
    operator("enqueue_", momentum)(memory, ptr, keys.detach(), newest_first, momentum)


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
    unit_memory: bool = False,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """One training step in one operator: writes ``z_t`` into the memory and computes the loss.

    The two parts are :func:`rrd_kernels.functional.enqueue_` and
    :func:`rrd_kernels.functional.relational_loss`.

    A recomputation by ``torch.utils.checkpoint`` writes nothing: the memory already holds the rows.
    It is right if each step's backward runs before the next step. :class:`rrd_kernels.RRDLoss`
    checks that; this function does not.

    Args:
        z_s: [B, D] student embeddings, unnormalised; float64, float32, bfloat16 or float16, any
            strides. Only this argument receives a gradient, in its own dtype.
        z_t: [B, D] teacher embeddings, unnormalised, with B <= K; same choice of dtypes.
        memory: [K, D] slots; same choice of dtypes, any strides, changed in place. Backward does
            not read them, so they may be overwritten before it.
        ptr: int64 [1], the slot of the first row of ``z_t``, on the memory's device, changed in
            place.
        enqueue: whether the rows of ``z_t`` enter the memory ``"before"`` (default) or ``"after"``
            the similarities are computed.
        newest_first, momentum: as in :func:`rrd_kernels.functional.enqueue_`.
        tau_s, tau_t, own_pair, divergence, reduction, unit_memory, precision, backend: as in
            :func:`rrd_kernels.functional.relational_loss`, with the same defaults. The promise
            ``unit_memory`` stays true: the rows that enter have norm 1.

    Returns:
        A scalar, or [B] for ``"none"``; float64 with float64 products, else float32. With B = 0
        nothing is written.

    Raises:
        TypeError, ValueError, RuntimeError: as either function. A recomputation by
            ``torch.utils.checkpoint`` of a step with ``enqueue="after"`` raises a RuntimeError: it
            would differentiate another loss than the one returned. Nothing is written then.

    Source: arXiv 2407.12073 and its published code, which runs the two parts one after the other.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import relational_step_
        >>> memory = torch.nn.functional.normalize(torch.randn(16384, 128), dim=1)
        >>> ptr = torch.zeros(1, dtype=torch.int64)
        >>> z_s, z_t = torch.randn(64, 128, requires_grad=True), torch.randn(64, 128)
        >>> relational_step_(z_s, z_t, memory, ptr, unit_memory=True).backward()
        >>> z_s.grad.shape, ptr
        (torch.Size([64, 128]), tensor([64]))
    """
    _check_loss(z_s, z_t, memory, tau_s, tau_t, own_pair, divergence, reduction)
    _check_write(memory, ptr, "z_t", z_t, newest_first, momentum)
    check.check_choice("enqueue", enqueue, check.ENQUEUES)
    writes = may_write(True, enqueue)
    precision = check.settle_precision(precision, z_s, z_t, memory)
    tau_s, tau_t, momentum = check.settle_numbers(tau_s, tau_t, momentum)
    if not use_fused(backend, z_s.device):
        terms: dict[str, Any] = {
            "tau_s": tau_s,
            "tau_t": tau_t,
            "own_pair": own_pair,
            "divergence": divergence,
            "reduction": reduction,
        }
        if not writes:
            return reference.relational_loss(z_s, z_t, memory, **terms)
        return reference.relational_step_(
            z_s,
            z_t,
            memory,
            ptr,
            enqueue=enqueue,
            newest_first=newest_first,
            momentum=momentum,
            **terms,
        )
    return operator("relational_step_", tau_s)(
        memory,
        ptr,
        z_s,
        z_t,
        tau_s,
        tau_t,
        unit_memory,
        own_pair,
        divergence == "kl",
        precision,
        check.REDUCTIONS.index(reduction),
        enqueue,
        newest_first,
        momentum,
    )


@torch.inference_mode(False)
@torch.enable_grad()
def warmup(
    batch: int,
    size: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    memory_dtype: torch.dtype | None = None,
    tau_s: Number = 0.1,
    tau_t: Number = 0.02,
    own_pair: bool = False,
    divergence: str = "cross_entropy",
    enqueue: str = "before",
    newest_first: bool = False,
    momentum: Number = 0.0,
    reduction: str = "mean",
    unit_memory: bool = False,
    precision: str | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Compiles the kernels of a training step and of the loss, for one size.

    The functions are :func:`rrd_kernels.functional.relational_step_` and
    :func:`rrd_kernels.functional.relational_loss`. GPU kernels are compiled at their first use,
    which takes seconds and cannot be captured in a CUDA graph. Compiled kernels are kept on disk
    for later processes.

    Args:
        batch: B, at least 1.
        size: rows K of the memory, at least B unless ``newest_first``.
        dim: width D.
        dtype: dtype of the embeddings. Under autocast give autocast's dtype. Default float32.
        memory_dtype: dtype of the memory. Default: ``dtype``.
        tau_s, tau_t, own_pair, divergence, enqueue, newest_first, momentum: as in the later calls.
        reduction, unit_memory, precision: likewise.
        device: device to compile for. Default: PyTorch's default device.

    Returns nothing; writes compiled kernels to disk, and no existing tensor.

    Raises:
        TypeError, ValueError: as the two functions.

    Source: Triton, which compiles a kernel when it is first launched.

    Example:
        >>> from rrd_kernels.functional import warmup
        >>> warmup(64, 16384, 128, unit_memory=True)
    """
    for name, value in (("batch", batch), ("size", size), ("dim", dim)):
        check.check_size(name, value)
    memory = torch.zeros(size, dim, dtype=memory_dtype or dtype, device=device)
    ptr = torch.zeros(1, dtype=torch.int64, device=device)
    z_s, z_t = (torch.zeros(batch, dim, dtype=dtype, device=device) for _ in range(2))
    options: dict[str, Any] = {
        "tau_s": tau_s,
        "tau_t": tau_t,
        "own_pair": own_pair,
        "divergence": divergence,
        "reduction": reduction,
        "unit_memory": unit_memory,
        "precision": precision,
    }
    write: dict[str, Any] = {"newest_first": newest_first, "momentum": momentum}
    for need_grad in (True, False):
        leaf = z_s.requires_grad_(need_grad)
        loss = relational_loss(leaf, z_t, memory, **options)
        if batch <= size or not newest_first:
            loss = loss + relational_step_(
                leaf, z_t, memory, ptr, enqueue=enqueue, **write, **options
            )
        if need_grad:
            torch.autograd.grad(loss.sum(), leaf)
    enqueue_(memory, ptr, z_t[:size], **write)
