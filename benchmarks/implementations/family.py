"""Steps of the methods that compare with a queue: each as its authors published it, from the
embeddings on, with the source in its docstring; and what is timed beside them."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case, FamilyCase
from benchmarks.implementations.fifo import Fused, PublishedEager, published_enqueue
from benchmarks.implementations.sdpa import SDPA
from benchmarks.implementations.step import AutogradStep, FifoStep


class Published(AutogradStep, FifoStep):
    """Operations, order and copies are the published code's, without what ranks gather."""

    name = PublishedEager.name
    waits_for_device = True

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        return self.loss(F.normalize(z_s, dim=1), F.normalize(z_t, dim=1))

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        """The mean, of unit embeddings [B, D]; writes ``k`` to the memory."""
        raise NotImplementedError

    def enqueue(self, k: Tensor) -> None:
        published_enqueue(self.memory, self.pointer, k)


class Columns(Published):
    """With the queue as [D, K], a key in each column. The state has a view of it, [K, D]."""

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self.state = (self.memory.T.contiguous().T, self.pointer)

    def similarities(self, rows: Tensor) -> Tensor:
        """[B, K], of a copy of the queue for each call."""
        return torch.einsum("nc,ck->nk", rows, self.memory.T.clone().detach())


class MoCo(Columns):
    """moco/builder.py and main_moco.py, facebookresearch/moco at 7397dfe."""

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        logits = torch.cat([positive, self.similarities(q)], dim=1)
        logits /= self.tau_s
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        self.enqueue(k)
        return F.cross_entropy(logits, labels)


class SEED(Columns):
    """seed/builder.py and tools/utils.py, jacobswan1/SEED at f236cac; without its autocast."""

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        student, teacher = self.similarities(q), self.similarities(k)
        own_s = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        own_t = torch.einsum("nc,nc->n", k, k).unsqueeze(-1)
        student = torch.cat([own_s, student], dim=1)
        teacher = torch.cat([own_t, teacher], dim=1)
        student /= self.tau_s
        teacher = F.softmax(teacher / self.tau_t, dim=1)
        self.enqueue(k)
        return -(teacher * F.log_softmax(student, 1)).sum() / len(student)


class ReSSL(Columns):
    """network/ressl.py and ressl.py, KyleZheng1997/ReSSL at 4d67daa."""

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        student, teacher = self.similarities(q), self.similarities(k)
        self.enqueue(k)
        target = F.softmax(teacher.detach() / self.tau_t, dim=1)
        return -torch.sum(target * F.log_softmax(student / self.tau_s, dim=1), dim=1).mean()


class ISD(Published):
    """train_isd.py, UMBCvision/ISD at 4bdd603."""

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        queue = self.memory.clone().detach()
        student, teacher = torch.mm(q, queue.t()), torch.mm(k, queue.t())
        student /= self.tau_s
        teacher /= self.tau_t
        self.enqueue(k)
        inputs, targets = F.log_softmax(student, dim=1), F.softmax(teacher, dim=1)
        return F.kl_div(inputs, targets, reduction="batchmean")


class LightlyTrain(Published):
    """src/lightly_train/_methods/distillation, lightly-ai/lightly-train at 8f5a75c. Its queue has
    no pointer: the rows move on by B at each step, and the batch comes first."""

    steps = 0

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        self.enqueue(k)
        student = torch.einsum("bd,cd->bc", q, self.memory)
        teacher = torch.einsum("bd,cd->bc", k, self.memory)
        target = F.softmax(teacher / self.tau_t, dim=-1)
        inputs = F.log_softmax(student / self.tau_s, dim=-1)
        return F.kl_div(inputs, target, reduction="batchmean")

    def enqueue(self, k: Tensor) -> None:
        batch = len(k)
        self.memory[batch:] = self.memory[:-batch].clone()
        self.memory[:batch] = k
        self.steps += 1

    def as_drawn(self) -> State:
        """The ring with the same rows, which grows downwards from slot 0."""
        pointer = -self.steps * self.case.batch % self.case.rows
        return self.memory.roll(pointer, 0), torch.full_like(self.pointer, pointer)


PUBLISHED = {kind.__name__: kind for kind in (MoCo, SEED, ReSSL, ISD, LightlyTrain)}


class SoftLoss(Fused):
    """RRD's loss of the same size, by this package."""

    name = f"{Fused.name} on RRD"

    @classmethod
    def computes(cls, case: Case) -> Case:
        return Case(case.batch, case.rows, case.format, case.dim)


class Products(SDPA):
    """The products of the pass alone: attention whose weights are the similarities, without a
    softmax. For some rows at a time, so that these weights need not leave the last cache, and for
    so many that the threads seldom wait for each other."""

    name = "torch.mm"
    compares_loss = False
    rows = 8192

    @classmethod
    def computes(cls, case: Case) -> Case:
        assert isinstance(case, FamilyCase)
        linear = replace(case, own_pair=False, divergence="cross_entropy", softmax=False)
        return replace(linear, tau_s=1.0, tau_t=0.0 if case.hard else 1.0)

    def _attention(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        output = torch.zeros_like(queries[0, 0])
        for rows in memory[0, 0].split(self.rows):
            output.addmm_(torch.mm(queries[0, 0], rows.T), rows)
        return output[None, None], output.new_zeros(len(output))
