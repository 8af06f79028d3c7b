"""Which backend a call goes to, and in which precision."""

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.extension import why_not_fused


def use_fused(backend: str, device: torch.device) -> bool:
    """Whether ``backend`` means the fused kernels there; an error where it asks for what is not."""
    check.check_choice("backend", backend, check.BACKENDS)
    if backend == "reference":
        return False
    reason = why_not_fused(device)
    if backend == "fused" and reason is not None:
        raise RuntimeError(f"backend='fused', but there are no fused kernels to use: {reason}")
    return reason is None


def settle_precision(precision: str | None, *tensors: Tensor) -> str | None:
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
