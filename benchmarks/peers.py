"""One training step from embeddings to gradient, in each implementation that is compared."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels import functional


class Step(ABC):
    """Enqueue the teacher's rows, then the mean loss and its gradient with respect to z_s.

    Args:
        memory: [K, D] unit rows; each step owns a copy, which its calls go on filling.
        tau_s: student temperature.
        tau_t: teacher temperature.
    """

    name: ClassVar[str]

    def __init__(self, memory: Tensor, tau_s: float, tau_t: float) -> None:
        self.memory = memory.clone()
        self.pointer = torch.zeros(1, dtype=torch.int64, device=memory.device)
        self.tau_s = tau_s
        self.tau_t = tau_t

    @abstractmethod
    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, a scalar, and gradient [B, D], for [B, D] embeddings, unnormalised."""


def _backward(loss: Tensor, z_s: Tensor) -> tuple[Tensor, Tensor]:
    loss.backward()
    assert z_s.grad is not None
    return loss.detach(), z_s.grad


class PublishedEager(Step):
    """What the code published with arXiv 2407.12073 does, in its order and with its copies."""

    name = "published eager"

    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        z_s = z_s.detach().requires_grad_()
        student = F.normalize(z_s, dim=1)
        teacher = F.normalize(z_t, dim=1)
        self._enqueue(teacher)
        student_logits = student @ self.memory.clone().T / self.tau_s
        teacher_logits = teacher @ self.memory.clone().T / self.tau_t
        cross_entropy = -(teacher_logits.softmax(dim=1) * student_logits.log_softmax(dim=1))
        return _backward(cross_entropy.sum(dim=1).mean(), z_s)

    def _enqueue(self, teacher: Tensor) -> None:
        batch, size = len(teacher), len(self.memory)
        if size % batch:
            raise ValueError(f"the batch, {batch}, must divide the memory's {size} rows")
        start = int(self.pointer)  # a host sync on a GPU
        self.memory[start : start + batch] = teacher
        self.pointer[0] = (start + batch) % size


class SDPA(Step):
    """The same attention through PyTorch's flash kernel for the CPU, K = V = memory, one head.

    Both temperatures go into the queries and the gradient into closed form, so nothing of size
    [B, K] exists here either.
    """

    name = "SDPA"

    @torch.no_grad()
    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(z_s.float(), dim=1, keepdim=True).clamp_min(1e-12)
        student = z_s.float() / norm
        teacher = F.normalize(z_t.float(), dim=1)
        self._enqueue(teacher)
        log_sum_exp, output_s, output_t = self._attend(student, teacher)
        loss = (log_sum_exp - (student * output_t).sum(dim=1) / self.tau_s).mean()
        grad = (output_s - output_t) / (self.tau_s * len(student))
        grad = (grad - (grad * student).sum(dim=1, keepdim=True) * student) / norm
        return loss, grad.to(z_s.dtype)

    def _enqueue(self, teacher: Tensor) -> None:
        batch, size = len(teacher), len(self.memory)
        slots = (self.pointer + torch.arange(batch, device=teacher.device)) % size
        self.memory[slots] = teacher.to(self.memory.dtype)
        self.pointer.add_(batch).remainder_(size)

    def _attend(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The student's log-sum-exp [B], and both attention outputs [B, D]."""
        queries = torch.cat([student / self.tau_s, teacher / self.tau_t]).to(self.memory.dtype)
        memory = self.memory[None, None]
        output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries[None, None], memory, memory, scale=1.0
        )
        output_s, output_t = output[0, 0].float().chunk(2)
        return log_sum_exp[0, 0, : len(student)], output_s, output_t


class Fused(Step):
    """This package's operators, with no fall-back to the reference."""

    name = "rrd_kernels"

    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        z_s = z_s.detach().requires_grad_()
        functional.enqueue_(self.memory, self.pointer, z_t, backend="fused")
        loss = functional.relational_loss(
            z_s,
            z_t,
            self.memory,
            tau_s=self.tau_s,
            tau_t=self.tau_t,
            unit_memory=True,
            backend="fused",
        )
        return _backward(loss, z_s)


def implementations(device: torch.device) -> list[type[Step]]:
    """Those that run on ``device``, the published code first."""
    return [PublishedEager, SDPA, Fused] if device.type == "cpu" else [PublishedEager, Fused]
