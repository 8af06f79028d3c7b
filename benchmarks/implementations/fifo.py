"""The FIFO memory's step: as published, compiled, and this package's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import config as inductor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import AutogradStep, FifoStep, enqueue
from rrd_kernels import functional


def cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The published mean loss of [B, K] logits."""
    losses = -(teacher_logits.softmax(dim=1) * student_logits.log_softmax(dim=1))
    return losses.sum(dim=1).mean()


def published_enqueue(memory: Tensor, pointer: Tensor, unit: Tensor) -> None:
    """As in MoCo's code and in what descends from it. B divides K."""
    batch, size, start = len(unit), len(memory), int(pointer)  # a host sync on a GPU
    assert size % batch == 0
    memory[start : start + batch] = unit
    pointer[0] = (start + batch) % size


def published_loss(
    z_s: Tensor, z_t: Tensor, memory: Tensor, pointer: Tensor, tau_s: float, tau_t: float
) -> Tensor:
    """What the code published with arXiv 2407.12073 does with [B, D] embeddings, in its order and
    with its copies: the teacher's rows enter, then the mean loss is taken."""
    student, teacher = F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)
    published_enqueue(memory, pointer, teacher)
    return cross_entropy(student @ memory.clone().T / tau_s, teacher @ memory.clone().T / tau_t)


class PublishedEager(AutogradStep, FifoStep):
    name = "published eager"
    rounds_similarities = True
    waits_for_device = True

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        return published_loss(z_s, z_t, self.memory, self.pointer, self.tau_s, self.tau_t)


class CompiledStep(AutogradStep):
    """Its ``loss``, of batch and state, as one graph without breaks, for one size."""

    name = "torch.compile"
    grows = False
    loss: Any

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        # Without processes that compile, which would go on beside what is timed.
        inductor.compile_threads = 1
        # Compiled anew: with what an earlier case has left, shapes would become dynamic.
        torch.compiler.reset()
        self._compiled = torch.compile(self.loss, fullgraph=True, dynamic=False)

    def forward(self, *batch: Tensor) -> Tensor:
        return self._compiled(*batch, *self.state)


class Compiled(CompiledStep, FifoStep):
    """torch.compile of the published arithmetic, freed of its copies and its host sync; not of the
    reference, which would compute half-precision products in float32."""

    rounds_similarities = True

    def loss(self, z_s: Tensor, z_t: Tensor, memory: Tensor, pointer: Tensor) -> Tensor:
        student, teacher = F.normalize(z_s, dim=1), enqueue(memory, pointer, z_t)
        return cross_entropy(student @ memory.T / self.tau_s, teacher @ memory.T / self.tau_t)


class Fused(AutogradStep, FifoStep):
    """This package's operators, with no fall-back to the reference."""

    name = "rrd_kernels"

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        names = ("tau_s", "tau_t", "own_pair", "divergence", "enqueue", "newest_first")
        self.options: Any = {name: getattr(self.case, name) for name in names}
        self.options |= {"unit_memory": True, "backend": "fused"}

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        return functional.relational_step_(z_s, z_t, *self.state, **self.options)
