"""The operators of the momentum memory, as functions; public through rrd_kernels.functional."""

from torch import Tensor

from rrd_kernels import reference
from rrd_kernels import validation as check
from rrd_kernels.extension import operator, use_fused
from rrd_kernels.validation import Number


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
    precision: str | None = None,
    method: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy of the student's relations to sampled rows against the teacher's.

    With s_i and t_i the normalised rows of ``z_s`` and ``z_t``, v¹ and v² the rows of the two
    memories, and c_ij the row numbers in ``contrast_idx``::

        b_ij = f₁(s_i·v²[c_ij]) / τ_s      a_ij = f₂(t_i·v¹[c_ij]) / τ_t
        loss_i = − Σ_j softmax_j(a_ij) log softmax_j(b_ij)

    Without ``normalizers``, f is the identity. With them, f_k(x) = exp(x / T) / Z_k as
    published. Z_k is about n_data times the mean of the exponential. So these logits are all about
    1 / (n_data τ), and the loss is about log P. The exception is a column whose cosine is so near 1
    that its exponential outweighs Z: that column has all the weight.

    No tensor of size B·P·D is made. If most rows of the memories are sampled, all rows are
    multiplied and the sampled similarities are picked. Otherwise the sampled rows are read in
    place.

    Args:
        z_s: [B, D] student embeddings, unnormalised; float64, float32, bfloat16 or float16, any
            strides. Only this argument receives a gradient, in its own dtype.
        z_t: [B, D] teacher embeddings, unnormalised; same choice of dtypes.
        memory_v1: [n_data, D] student rows, compared with the teacher; not normalised here; same
            choice of dtypes. All rows must be finite: with the dense method, one row that is not
            finite makes the gradients of all samples NaN.
        memory_v2: [n_data, D] teacher rows, compared with the student; otherwise as ``memory_v1``.
        contrast_idx: int [B, P], any integer dtype, the rows that each sample is compared with.
            The kernels read int64; another dtype costs a copy.
        normalizers: [2] float64 or float32, (Z_v1, Z_v2); see
            :func:`rrd_kernels.functional.estimate_normalizers_`. The loss is NaN while one of them
            is not positive. Default: none.
        tau_s: student temperature, positive: a number, or a CPU tensor with one element and without
            a gradient. Default 0.1.
        tau_t: teacher temperature, likewise. Default 0.02.
        nce_t: temperature T of the exponential, likewise. Default 0.07. Not used without
            ``normalizers``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``. For B = 0 the mean is zero.
        precision: as in :func:`rrd_kernels.functional.relational_loss`, with two exceptions: a CPU,
            and ``"gather"`` on a GPU, multiply in float32 unless it is ``"float64"``. The softmax
            is float64 on a CPU, and float32 or float64 on a GPU.
        method: ``"dense"`` (multiplies all rows), ``"gather"`` (reads the sampled rows) or
            ``"auto"`` (default), the one that costs less; docs/decisions.md has the rule.
        backend: ``"auto"`` (default), ``"fused"`` or ``"reference"``.

    Returns:
        A scalar, or [B] for ``"none"``; float64 with float64 products, else float32.

    Raises:
        TypeError: an argument has the wrong type, a tensor is sparse, integer, complex or a
            DTensor, or the index is bool or floating.
        ValueError: shapes or devices do not agree, or a value is out of range.
        IndexError: on a CPU, an index is not a row of the memories. On a GPU the loss and gradient
            of such a sample are NaN instead.
        RuntimeError: ``backend="fused"`` without fused kernels. A second derivative raises
            ``NotImplementedError``, a subclass.

    Source: arXiv 2407.12073 and the momentum memory of its published code.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import sampled_relational_loss
        >>> z_s, z_t = torch.randn(64, 128, requires_grad=True), torch.randn(64, 128)
        >>> memory_v1, memory_v2 = torch.randn(2, 5000, 128) / 128**0.5
        >>> contrast_idx = torch.randint(5000, (64, 1025))
        >>> sampled_relational_loss(z_s, z_t, memory_v1, memory_v2, contrast_idx).backward()
        >>> z_s.grad.shape
        torch.Size([64, 128])
    """
    contrast_idx = check.check_views(z_s, z_t, memory_v1, memory_v2, contrast_idx)
    for name, value in (("tau_s", tau_s), ("tau_t", tau_t), ("nce_t", nce_t)):
        check.check_temperature(name, value)
    check.check_choice("reduction", reduction, check.REDUCTIONS)
    check.check_choice("method", method, check.METHODS)
    check.check_has_columns(contrast_idx)
    if normalizers is not None:
        check.check_normalizers(normalizers, memory_v1)
    precision = check.settle_precision(precision, z_s, z_t, memory_v1, memory_v2)
    tau_s, tau_t, nce_t = check.settle_numbers(tau_s, tau_t, nce_t)
    if not use_fused(backend, z_s.device):
        check.check_range("contrast_idx", contrast_idx, memory_v1.shape[0])
        return reference.sampled_relational_loss(
            z_s,
            z_t,
            memory_v1,
            memory_v2,
            contrast_idx,
            normalizers,
            tau_s=tau_s,
            tau_t=tau_t,
            nce_t=nce_t,
            reduction=reduction,
        )
    return operator("sampled_relational_loss", tau_s)(
        z_s,
        z_t,
        memory_v1,
        memory_v2,
        contrast_idx,
        normalizers,
        tau_s,
        tau_t,
        nce_t,
        precision,
        check.REDUCTIONS.index(reduction),
        method,
    )


def estimate_normalizers_(
    normalizers: Tensor,
    z_s: Tensor,
    z_t: Tensor,
    memory_v1: Tensor,
    memory_v2: Tensor,
    contrast_idx: Tensor,
    *,
    nce_t: Number = 0.07,
    backend: str = "auto",
) -> None:
    """Estimates Z_v1 and Z_v2 from a batch, where they are negative, without a host sync.

    Each is set to ``mean(exp(s.m / nce_t)) * n_data`` of its view. The published memory does this
    at its first batch and keeps the values. A value that is already set does not change, at the
    cost of reading it.

    Args:
        normalizers: [2] float64 or float32, changed in place. A mean that is not finite is not set.
        z_s, z_t, memory_v1, memory_v2, contrast_idx, nce_t: as in
            :func:`rrd_kernels.functional.sampled_relational_loss`.
        backend: ``"auto"`` (default), ``"fused"`` or ``"reference"``.

    Returns nothing; writes ``normalizers``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as ``sampled_relational_loss``. Nothing is
            written then.

    Source: the momentum memory of arXiv 2407.12073's published code.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import estimate_normalizers_
        >>> normalizers = torch.full((2,), -1.0)
        >>> memory, contrast_idx = torch.zeros(50, 8), torch.randint(50, (4, 3))
        >>> estimate_normalizers_(normalizers, *torch.randn(2, 4, 8), memory, memory, contrast_idx)
        >>> normalizers
        tensor([50., 50.])
    """
    contrast_idx = check.check_views(z_s, z_t, memory_v1, memory_v2, contrast_idx)
    check.check_temperature("nce_t", nce_t)
    check.check_normalizers(normalizers, memory_v1)
    check.check_writable("normalizers", normalizers)
    (nce_t,) = check.settle_numbers(nce_t)
    if not use_fused(backend, z_s.device):
        check.check_range("contrast_idx", contrast_idx, memory_v1.shape[0])
        reference.estimate_normalizers_(
            normalizers, z_s, z_t, memory_v1, memory_v2, contrast_idx, nce_t=nce_t
        )
        return
    operator("estimate_normalizers_", nce_t)(
        normalizers, z_s.detach(), z_t.detach(), memory_v1, memory_v2, contrast_idx, nce_t
    )


def momentum_update_(
    memory: Tensor,
    index: Tensor,
    rows: Tensor,
    momentum: Number = 0.5,
    *,
    backend: str = "auto",
) -> None:
    """Moves the memory's rows at ``index`` towards the normalised ``rows``, in place.

    Each becomes ``normalize(momentum * old + (1 - momentum) * normalize(new))``. If an index
    occurs more than once, the last one wins, on every device. If a new row is not finite, the
    memory's row does not change.

    Args:
        memory: [n_data, D]; float64, float32, bfloat16 or float16, any strides, changed in place.
        index: int [B], any integer dtype, rows of the memory; repeats are allowed.
        rows: [B, D] new rows, unnormalised; same choice of dtypes.
        momentum: weight of the old row, in [0, 1). Default 0.5.
        backend: ``"auto"`` (default), ``"fused"`` or ``"reference"``.

    Returns nothing; writes ``memory``.

    Raises:
        TypeError: an argument has the wrong type, a tensor is sparse, integer, complex or a
            DTensor, or the index is bool or floating.
        ValueError: shapes or devices do not agree, the momentum is out of range, or the memory is
            expanded or requires a gradient.
        IndexError: on a CPU, an index is not a row of the memory. Nothing is written then. On a GPU
            such an index writes nothing.
        RuntimeError: ``backend="fused"`` without fused kernels.

    Source: the momentum memory of arXiv 2407.12073's published code.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import momentum_update_
        >>> memory = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> momentum_update_(memory, torch.tensor([1]), torch.tensor([[2.0, 0.0]]))
        >>> memory[1]
        tensor([0.7071, 0.7071])
    """
    check.check_rows("memory", memory)
    check.check_rows("rows", rows)
    check.check_alike("rows", rows, "memory", memory, same_rows=False)
    check.check_not_empty("memory", memory)
    check.check_writable("memory", memory)
    index = check.check_index("index", index, rows, dims=1)
    check.check_momentum("momentum", momentum)
    (momentum,) = check.settle_numbers(momentum)
    if not use_fused(backend, memory.device):
        check.check_range("index", index, memory.shape[0])
        reference.momentum_update_(memory, index, rows, momentum)
        return
    operator("momentum_update_", momentum)(memory, index, rows.detach(), momentum)
