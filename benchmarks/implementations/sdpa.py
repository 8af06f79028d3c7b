"""The step through PyTorch's attention kernels, all that the device has."""

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case, FamilyCase
from benchmarks.implementations.step import FifoStep, enqueue


class SDPA(FifoStep):
    """Attention with K = V = memory and one head. Both temperatures go into the queries, and the
    own pair and the gradient into closed form, so that nothing is left to autograd."""

    kernel: ClassVar[str]  #: in torch.ops.aten, without what all begin with
    options: ClassVar[dict[str, Any]] = {}
    takes_float32 = True  #: if not, it may read it as if it were halves

    @classmethod
    def takes(cls, case: Case) -> bool:
        return cls.takes_float32 or case.dtype != torch.float32

    @torch.no_grad()
    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        case, batch = self.case, len(z_s)
        norm = torch.linalg.vector_norm(z_s.float(), dim=1, keepdim=True).clamp_min(1e-12)
        student = z_s.float() / norm
        write = partial(enqueue, self.memory, self.pointer, z_t.float(), case.newest_first)
        before = case.enqueue == "before"
        teacher = write() if before else F.normalize(z_t.float(), dim=1)
        # With the hard target the teacher attends to its own row alone: B queries, not 2B.
        of_teacher = [] if case.hard else [teacher / self.tau_t]
        queries = torch.cat([student / self.tau_s, *of_teacher])
        inputs = (rows.to(self.memory.dtype)[None, None] for rows in (queries, self.memory))
        output, log_sum_exp = self._attention(*inputs)
        if not before:
            write()
        output = output[0, 0].float()
        # [1, 1, queries], which some kernels pad and some give a fourth dimension.
        log_sum_exp = log_sum_exp.flatten()[: len(queries)]
        if case.own_pair:
            own = teacher.repeat(len(queries) // batch, 1)
            logit = (queries * own).sum(dim=1)
            total = torch.logaddexp(log_sum_exp, logit)
            kept, weight = ((part - total).exp()[:, None] for part in (log_sum_exp, logit))
            output, log_sum_exp = output * kept + own * weight, total
        output_s, output_t = output[:batch], teacher if case.hard else output[batch:]
        loss = (log_sum_exp[:batch] - (student * output_t).sum(dim=1) / self.tau_s).mean()
        if case.divergence == "kl" and not case.hard:  # less the teacher's entropy
            loss -= (log_sum_exp[batch:] - (teacher * output_t).sum(dim=1) / self.tau_t).mean()
        grad = (output_s - output_t) * (self.loss_scale / (self.tau_s * batch))
        grad = (grad - (grad * student).sum(dim=1, keepdim=True) * student) / norm
        return loss, grad.to(z_s.dtype)

    def _attention(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Output and natural log-sum-exp over [1, 1, K, D]."""
        kernel = getattr(torch.ops.aten, f"_scaled_dot_product_{self.kernel}")
        return kernel(queries, memory, memory, scale=1.0, **self.options)[:2]


class Math(SDPA):
    """The one that every device has, with [2B, K] logits and weights. It returns no log-sum-exp,
    which is had from the largest weight of each student's row, exp(b - LSE): one more pass over
    [B, K] weights, and one logit b a row. The teacher's, which RRD does not need, is left out."""

    name = "SDPA math"
    kernel = "attention_math"
    grows = False

    def _attention(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        output, weights = super()._attention(queries, memory)
        batch = queries.shape[2] // 2
        largest, at = weights[0, 0, :batch].max(dim=1)
        logit = (queries[0, 0, :batch].float() * memory[0, 0, at].float()).sum(dim=1)
        return output, logit - largest.float().log()


def _kernel(title: str, kernel: str, float32: bool = True, **options: Any) -> type[SDPA]:
    fields = {"name": f"SDPA {title}", "kernel": kernel, "takes_float32": float32}
    return type(kernel, (SDPA,), fields | {"options": options})


class CpuFlash(SDPA):  # goes to other processes, by this name
    name = "SDPA flash"
    kernel = "flash_attention_for_cpu"

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        # Its exponential may err by 20 ulp (pytorch/pytorch#115151), which shows at ISD's size.
        self.sums_otherwise = isinstance(case, FamilyCase)


LOG_SUM_EXP: Any = {"attn_bias": None, "compute_log_sumexp": True}
ON_GPU = [
    _kernel("flash", "flash_attention", float32=False),
    _kernel("efficient", "efficient_attention", **LOG_SUM_EXP),
    _kernel("cuDNN", "cudnn_attention", float32=False, **LOG_SUM_EXP),
]
