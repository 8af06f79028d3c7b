"""The FIFO memory's step: as published, compiled, and this package's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import AnyCase, Case
from benchmarks.inputs import State
from benchmarks.step import FifoStep
from rrd_kernels import functional


class PublishedEager(FifoStep):
    """What the code published with arXiv 2407.12073 does, in its order and with its copies."""

    name = "published eager"
    waits_for_device = True
    rounds_similarities = True

    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        z_s = z_s.detach().requires_grad_()
        student = F.normalize(z_s, dim=1)
        teacher = F.normalize(z_t, dim=1)
        self._enqueue(teacher)
        student_logits = student @ self.memory.clone().T / self.tau_s
        teacher_logits = teacher @ self.memory.clone().T / self.tau_t
        cross_entropy = -(teacher_logits.softmax(dim=1) * student_logits.log_softmax(dim=1))
        return self._backward(cross_entropy.sum(dim=1).mean(), z_s)

    def _enqueue(self, teacher: Tensor) -> None:
        batch, size = len(teacher), len(self.memory)
        if size % batch:
            raise ValueError(f"the batch, {batch}, must divide the memory's {size} rows")
        start = int(self.pointer)  # a host sync on a GPU
        self.memory[start : start + batch] = teacher
        self.pointer[0] = (start + batch) % size


class Compiled(FifoStep):
    """torch.compile of the published arithmetic, freed of its copies and its host sync.

    Not of the reference, which would compute half-precision products in float32.
    """

    name = "torch.compile"
    rounds_similarities = True
    #: B and K for which compiling is waited for, which takes up to half a minute.
    sizes = ((64, 16384), (256, 16384), (1024, 65536))

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        # Compiled anew: with what an earlier case has left, shapes would become dynamic.
        torch.compiler.reset()
        self._loss = torch.compile(self._eager_loss, fullgraph=True, dynamic=False)

    @classmethod
    def why_not(cls, case: AnyCase) -> str | None:
        assert isinstance(case, Case)
        wanted = (case.batch, case.rows) in cls.sizes and case.dim == 128
        return None if wanted else "not compiled at this size"

    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        z_s = z_s.detach().requires_grad_()
        return self._backward(self._loss(z_s, z_t, self.memory, self.pointer), z_s)

    def _eager_loss(self, z_s: Tensor, z_t: Tensor, memory: Tensor, pointer: Tensor) -> Tensor:
        student = F.normalize(z_s, dim=1)
        teacher = F.normalize(z_t, dim=1)
        slots = (pointer + torch.arange(len(teacher), device=pointer.device)) % len(memory)
        memory[slots] = teacher
        pointer.copy_((pointer + len(teacher)) % len(memory))
        student_logits = student @ memory.T / self.tau_s
        teacher_logits = teacher @ memory.T / self.tau_t
        cross_entropy = -(teacher_logits.softmax(dim=1) * student_logits.log_softmax(dim=1))
        return cross_entropy.sum(dim=1).mean()


class Fused(FifoStep):
    """This package's operators, with no fall-back to the reference."""

    name = "rrd_kernels"

    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        z_s = z_s.detach().requires_grad_()
        loss = functional.relational_step_(
            z_s,
            z_t,
            self.memory,
            self.pointer,
            tau_s=self.tau_s,
            tau_t=self.tau_t,
            unit_memory=True,
            backend="fused",
        )
        return self._backward(loss, z_s)
