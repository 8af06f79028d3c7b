"""The step through PyTorch's attention kernels, all that the device has."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import FifoStep, enqueue


class SDPA(FifoStep):
    """Attention with K = V = memory and one head. Both temperatures go into the queries and the
    gradient into closed form, so that nothing is left to autograd."""

    #: What torch.ops.aten calls it, without what all begin with, and its further options.
    kernel: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    #: Of the operands; a kernel called with others may read them as if they were these.
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")

    @classmethod
    def takes(cls, case: Case) -> bool:
        return case.dtype_name in cls.dtypes

    @torch.no_grad()
    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(z_s)
        norm = torch.linalg.vector_norm(z_s.float(), dim=1, keepdim=True).clamp_min(1e-12)
        student = z_s.float() / norm
        teacher = enqueue(self.memory, self.pointer, z_t.float())
        queries = torch.cat([student / self.tau_s, teacher / self.tau_t]).to(self.memory.dtype)
        output, log_sum_exp = self._attention(queries[None, None], self.memory[None, None])
        output_s, output_t = output[0, 0].float().split(batch)
        # [1, 1, 2B], which some kernels pad and some give a fourth dimension.
        log_sum_exp = log_sum_exp.flatten()[:batch]
        loss = (log_sum_exp - (student * output_t).sum(dim=1) / self.tau_s).mean()
        grad = (output_s - output_t) * (self.loss_scale / (self.tau_s * batch))
        grad = (grad - (grad * student).sum(dim=1, keepdim=True) * student) / norm
        return loss, grad.to(z_s.dtype)

    def _attention(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Output and natural log-sum-exp of attention over [1, 1, K, D], unscaled; the latter of
        the first half of the queries at least."""
        kernel = getattr(torch.ops.aten, f"_scaled_dot_product_{self.kernel}")
        return kernel(queries, memory, memory, scale=1.0, **self.options)[:2]


class Math(SDPA):
    """The one that every device has: it makes the [2B, K] logits and weights.

    It returns the weights and no log-sum-exp. That is had from the largest weight of each student's
    row, exp(b - LSE): one more pass over [B, K] weights, and one logit b a row.
    """

    name = "SDPA math"
    kernel = "attention_math"

    def _attention(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        output, weights = super()._attention(queries, memory)
        batch = queries.shape[2] // 2
        largest, at = weights[0, 0, :batch].max(dim=1)
        logit = (queries[0, 0, :batch].float() * memory[0, 0, at].float()).sum(dim=1)
        return output, logit - largest.float().log()


class CpuFlash(SDPA):
    name = "SDPA flash"
    kernel = "flash_attention_for_cpu"


class Flash(SDPA):
    name = "SDPA flash"
    kernel = "flash_attention"
    dtypes = ("bfloat16", "float16")


class Efficient(SDPA):
    name = "SDPA efficient"
    kernel = "efficient_attention"
    options: ClassVar = {"attn_bias": None, "compute_log_sumexp": True}


class Cudnn(Efficient):
    name = "SDPA cuDNN"
    kernel = "cudnn_attention"
    dtypes = ("bfloat16", "float16")
