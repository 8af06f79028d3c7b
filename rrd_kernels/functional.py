"""The operators behind :class:`rrd_kernels.RRDLoss`, as functions.

Each checks its arguments, settles the defaults and makes one operator call; each has a twin of the
same name and meaning in :mod:`rrd_kernels.reference`.
"""

import torch
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels import validation as check
from rrd_kernels.ops import EXTENSION_ERROR, FUSED_DEVICES, fused_available


def _use_fused(backend: str, device: torch.device) -> bool:
    check.check_choice("backend", backend, check.BACKENDS)
    available = fused_available(device)
    if backend == "fused" and not available:
        reason = EXTENSION_ERROR or f"they run on {', '.join(FUSED_DEVICES)}, not on {device.type}"
        raise RuntimeError(f"backend='fused', but there are no fused kernels to use: {reason}")
    return available and backend != "reference"


def _settle_precision(precision: str | None, *tensors: Tensor) -> str | None:
    """The format of the products' operands; ``None`` is float32 as PyTorch's global setting has it
    at run time, which a compiled graph must not freeze."""
    if precision is not None:
        check.check_choice("precision", precision, check.PRECISIONS)
        return precision
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.float64 in dtypes:
        return "float64"
    if dtypes == {torch.bfloat16}:
        return "bfloat16"
    if dtypes == {torch.float16}:
        return "float16"
    return None


def relational_loss(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    *,
    tau_s: float = 0.1,
    tau_t: float = 0.02,
    reduction: str = "mean",
    unit_memory: bool = False,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Cross-entropy of the student's relations to a memory against the teacher's.

    With :math:`s_i, t_i` the normalised rows of ``z_s`` and ``z_t`` and :math:`m_j` those of
    ``memory``,

    .. math::
        \ell_i = -\sum_j \mathrm{softmax}_j(t_i \cdot m_j / \tau_t)
                 \log \mathrm{softmax}_j(s_i \cdot m_j / \tau_s).

    One pass over the memory gives the loss and its gradient; nothing of size [B, K] exists, and
    backward does not look at the memory again.

    Args:
        z_s: [B, D] student embeddings, unnormalised; float64, float32, bfloat16 or float16, any
            strides. The only argument that receives a gradient, in its own dtype.
        z_t: [B, D] teacher embeddings, unnormalised, same choice of dtypes.
        memory: [K, D] earlier teacher rows, used as they are, same choice of dtypes.
        tau_s: student temperature, positive. Default 0.1.
        tau_t: teacher temperature, positive. Default 0.02.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``. The mean over no rows is zero.
        unit_memory: promises that no row of the memory is longer than 1 (by more than rounding),
            which spares the running maximum of the softmax. Default ``False``. A broken promise
            is found out where it matters, and costs a second pass, never a wrong result.
        precision: the format of the products' operands: ``"float64"``, ``"float32"``, ``"tf32"``,
            ``"float16"`` or ``"bfloat16"``. Sums are float32, or float64 with ``"float64"``.
            Default: the dtype that the three tensors promote to; float32 follows
            :func:`torch.get_float32_matmul_precision`. Where a device has no unit for a format, a
            finer one is used: a CPU computes ``"tf32"`` and ``"float16"`` in float32, and
            ``"bfloat16"`` too unless it has AMX. The reference backend always computes in float32,
            or float64 when an input is.
        backend: ``"auto"`` (default: fused kernels where there are any), ``"fused"`` (an error
            where there are none) or ``"reference"`` (plain PyTorch, twice differentiable).

    Returns:
        A scalar, or [B] for ``"none"``; float64 with float64 products, else float32.

    Raises:
        TypeError: an argument of the wrong type; sparse, integer, complex or DTensor inputs.
        ValueError: shapes or devices that do not agree, a value out of range.
        RuntimeError: ``backend="fused"`` without fused kernels. A second derivative raises
            ``NotImplementedError``, a subclass of it.

    Source: arXiv 2407.12073; the form computed here is derived in docs/decisions.md.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import relational_loss
        >>> z_s = torch.randn(64, 128, requires_grad=True)
        >>> z_t, memory = torch.randn(64, 128), torch.randn(16384, 128)
        >>> relational_loss(z_s, z_t, memory).backward()
        >>> z_s.grad.shape
        torch.Size([64, 128])
    """
    check.check_rows("z_s", z_s)
    check.check_rows("z_t", z_t)
    check.check_rows("memory", memory)
    check.check_alike("z_s", z_s, "z_t", z_t, same_rows=True)
    check.check_alike("z_s", z_s, "memory", memory, same_rows=False)
    check.check_not_empty("memory", memory)
    check.check_temperature("tau_s", tau_s)
    check.check_temperature("tau_t", tau_t)
    check.check_choice("reduction", reduction, check.REDUCTIONS)
    precision = _settle_precision(precision, z_s, z_t, memory)
    if not _use_fused(backend, z_s.device):
        return reference.relational_loss(
            z_s, z_t, memory, tau_s=tau_s, tau_t=tau_t, reduction=reduction
        )
    return torch.ops.rrd_kernels.relational_loss(
        z_s,
        z_t,
        memory,
        float(tau_s),
        float(tau_t),
        unit_memory,
        precision,
        check.REDUCTIONS.index(reduction),
    )


def enqueue_(
    memory: Tensor,
    ptr: Tensor,
    keys: Tensor,
    *,
    momentum: float = 0.0,
    backend: str = "auto",
) -> None:
    """Writes the unit rows of ``keys`` into a ring of slots, in place and without a host sync.

    Slot ``(ptr + i) % K`` becomes ``normalize(momentum * slot + (1 - momentum) * normalize(key))``
    for the i-th key, and ``ptr`` becomes ``(ptr + B) % K``. A key that is not finite leaves its
    slot as it was.

    Args:
        memory: [K, D] slots; float64, float32, bfloat16 or float16, any strides, changed in place.
        ptr: int64 [1], the slot of the first key, on the memory's device, changed in place.
        keys: [B, D] rows, unnormalised, with B <= K; same choice of dtypes.
        momentum: how much of the old slot stays, in [0, 1). Default 0: the plain FIFO write.
        backend: ``"auto"`` (default), ``"fused"`` or ``"reference"``.

    Raises:
        TypeError: an argument of the wrong type; sparse, integer, complex or DTensor inputs.
        ValueError: B > K, widths or devices that do not agree, momentum out of range, a memory
            that is expanded or requires a gradient. Nothing has been written then.
        RuntimeError: ``backend="fused"`` without fused kernels.

    Source: the published code of arXiv 2407.12073, with wrapping, momentum and refusal added.

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
    check.check_writable("memory", memory)
    check.check_pointer(ptr, memory)
    check.check_momentum("momentum", momentum)
    if keys.shape[0] > memory.shape[0]:
        raise ValueError(
            f"keys has {keys.shape[0]} rows, more than the {memory.shape[0]} of memory: "
            f"shapes {tuple(keys.shape)} and {tuple(memory.shape)}"
        )
    if not _use_fused(backend, memory.device):
        reference.enqueue_(memory, ptr, keys, momentum=momentum)
        return
    torch.ops.rrd_kernels.enqueue_(memory, ptr, keys.detach(), float(momentum))
