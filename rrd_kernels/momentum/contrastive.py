"""CRD's loss over sampled rows, as a function; public through rrd_kernels.functional."""

from torch import Tensor

from rrd_kernels import reference
from rrd_kernels import validation as check
from rrd_kernels.extension import operator, use_fused
from rrd_kernels.validation import Number


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
    precision: str | None = None,
    method: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """CRD's noise-contrastive loss of student and teacher against sampled rows.

    Each embedding is to tell its positive, column 0, from K = P - 1 columns of noise. With v_i a
    normalised row of ``z_s``, U the rows of ``memory_v2``, Z = ``normalizers[0]``, and c_ij the row
    numbers in ``contrast_idx``::

        x_ij = exp(v_i·U[c_ij] / T) / Z
        loss_i = − ln(x_i0 / (x_i0 + K/n + ε)) − Σ_{j≥1} ln((K/n) / (x_ij + K/n + ε))

    where n is the number of rows and ε = 1e-7. To this is added the same for the rows of ``z_t``,
    ``memory_v1`` and ``normalizers[1]``. The loss is computed as a binary cross-entropy of the
    logits ln x − ln(K/n + ε), which neither cancel nor overflow (docs/decisions.md).

    No tensor of size B·P·D is made, and each sampled row is read once for loss and gradient. If
    most rows of the memories are sampled, all rows are multiplied instead.

    Args:
        z_s: [B, D] student embeddings, unnormalised; float64, float32, bfloat16 or float16, any
            strides. Receives a gradient in its own dtype.
        z_t: [B, D] teacher embeddings, likewise; receives a gradient too.
        memory_v1: [n_data, D] student rows, compared with the teacher; not normalised here; same
            choice of dtypes. All rows must be finite, as in
            :func:`rrd_kernels.functional.sampled_relational_loss`.
        memory_v2: [n_data, D] teacher rows, compared with the student; otherwise as ``memory_v1``.
        contrast_idx: int [B, P], any integer dtype, the rows that each sample is compared with, the
            positive first. The kernels read int64; another dtype costs a copy.
        normalizers: [2] float64 or float32, (Z_v1, Z_v2); see
            :func:`rrd_kernels.functional.estimate_normalizers_`. They receive no gradient. The loss
            is NaN while one of them is not positive. They must be finite in float32.
        nce_t: temperature T, positive: a number, or a CPU tensor with one element and without a
            gradient. Default 0.07.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``. For B = 0 the mean is zero.
        precision, method, backend: as in
            :func:`rrd_kernels.functional.sampled_relational_loss`.

    Returns:
        A scalar, or [B] for ``"none"``; float64 with float64 products, else float32.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as
            :func:`rrd_kernels.functional.sampled_relational_loss`.

    Source: Contrastive Representation Distillation, arXiv 1910.10699, and its published code.

    Example:
        >>> import torch
        >>> from rrd_kernels.functional import estimate_normalizers_, sampled_contrastive_loss
        >>> z_s, z_t = torch.randn(2, 64, 128, requires_grad=True)
        >>> memories = torch.randn(2, 5000, 128) / 128**0.5
        >>> views = (z_s, z_t, *memories, torch.randint(5000, (64, 1025)))
        >>> normalizers = torch.full((2,), -1.0)
        >>> estimate_normalizers_(normalizers, *views)
        >>> sampled_contrastive_loss(*views, normalizers).shape
        torch.Size([])
    """
    contrast_idx = check.check_views(z_s, z_t, memory_v1, memory_v2, contrast_idx)
    check.check_temperature("nce_t", nce_t)
    check.check_choice("reduction", reduction, check.REDUCTIONS)
    check.check_choice("method", method, check.METHODS)
    check.check_has_columns(contrast_idx)
    check.check_normalizers(normalizers, memory_v1)
    precision = check.settle_precision(precision, z_s, z_t, memory_v1, memory_v2)
    (nce_t,) = check.settle_numbers(nce_t)
    if not use_fused(backend, z_s.device):
        check.check_range("contrast_idx", contrast_idx, memory_v1.shape[0])
        return reference.sampled_contrastive_loss(
            z_s,
            z_t,
            memory_v1,
            memory_v2,
            contrast_idx,
            normalizers,
            nce_t=nce_t,
            reduction=reduction,
        )
    return operator("sampled_contrastive_loss", nce_t)(
        z_s,
        z_t,
        memory_v1,
        memory_v2,
        contrast_idx,
        normalizers,
        nce_t,
        precision,
        check.REDUCTIONS.index(reduction),
        method,
    )
