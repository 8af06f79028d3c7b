"""The steps of the momentum memory, RRD's and CRD's: as published, compiled, and this package's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case
from benchmarks.implementations import fifo
from benchmarks.implementations.step import AutogradStep
from rrd_kernels import functional


def exponentials(rows: Tensor, unit: Tensor, nce_t: Any) -> Tensor:
    """exp(unit.row / T), [B, P, 1], of gathered rows; in the embeddings' format."""
    return torch.exp(torch.bmm(rows.to(unit.dtype), unit[:, :, None]) / nce_t)


class PublishedMomentum(AutogradStep):
    """What the published code does: gathers rows of both memories, [B, P, D] each, and reads its
    constants on the host at every step."""

    name = fifo.PublishedEager.name
    waits_for_device = True

    def forward(self, *batch: Tensor) -> Tensor:
        *memories, params = self.state
        return self.loss(*batch, *memories, [value.item() for value in params])

    def loss(
        self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor, *state: Any
    ) -> Tensor:
        """Of similarities exp(s.m / T) / Z, [B, P], before the rows at idx move, if anything is
        trained. ``state`` is both memories and the constants, on the host or on the device."""
        memory_v1, memory_v2, (_, nce_t, z_v1, z_v2, nce_m) = state
        student, teacher = F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)
        shape = (*contrast_idx.shape, memory_v1.shape[1])
        # Both are there at once, until this function ends.
        rows_v1 = torch.index_select(memory_v1, 0, contrast_idx.view(-1)).view(shape)
        out_t = exponentials(rows_v1, teacher, nce_t) / z_v2
        rows_v2 = torch.index_select(memory_v2, 0, contrast_idx.view(-1)).view(shape)
        out_s = exponentials(rows_v2, student, nce_t) / z_v1
        if self.case.trained:
            with torch.no_grad():
                for memory, unit in ((memory_v1, student), (memory_v2, teacher)):
                    rows = torch.index_select(memory, 0, idx)
                    rows.mul_(nce_m).add_(unit * (1 - nce_m))
                    norm = rows.pow(2).sum(dim=1, keepdim=True).pow(0.5)
                    memory.index_copy_(0, idx, rows / norm)
        return self.compared(out_s.squeeze(2), out_t.squeeze(2), len(memory_v1))

    def compared(self, out_s: Tensor, out_t: Tensor, n_data: int) -> Tensor:
        """The mean loss of similarities [B, P]."""
        return fifo.cross_entropy(out_s / self.tau_s, out_t / self.tau_t)


class CompiledMomentum(fifo.CompiledStep, PublishedMomentum):
    """torch.compile of the published arithmetic, with its constants on the device: freed of its
    host syncs, and of the gathered rows where the compiler multiplies as it reads them."""

    waits_for_device = False


class FusedMomentum(AutogradStep):
    """This package's operators, in the order of its module, with no fall-back to the reference."""

    name = fifo.Fused.name

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        _, self.nce_t, _, _, self.nce_m = self.state[2].tolist()

    def forward(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        *memories, params = self.state
        views: Any = (z_s, z_t, *memories, contrast_idx)
        options: Any = {"nce_t": self.nce_t, "backend": "fused"}
        functional.estimate_normalizers_(params[2:4], *views, **options)
        loss = self.loss(*views, params[2:4], **options)
        for memory, z in zip(memories, (z_s, z_t), strict=True) if self.case.trained else ():
            functional.momentum_update_(memory, idx, z.detach(), self.nce_m, backend="fused")
        return loss

    def loss(self, *views: Tensor, **options: Any) -> Tensor:
        options |= {"tau_s": self.tau_s, "tau_t": self.tau_t}
        return functional.sampled_relational_loss(*views, **options)


class PublishedContrastive(PublishedMomentum):
    """As CRD's published code: both similarities have a gradient, and a binary loss each."""

    cancels = True

    def compared(self, out_s: Tensor, out_t: Tensor, n_data: int) -> Tensor:
        return self.binary(out_s, n_data) + self.binary(out_t, n_data)

    def binary(self, out: Tensor, n_data: int) -> Tensor:
        """Column 0 is to be told from K draws of noise, each of which has probability 1 / n."""
        noise = (out.shape[1] - 1) / n_data
        positive, negatives = out[:, 0], out[:, 1:]
        from_data = torch.div(positive, positive + (noise + 1e-7)).log()
        from_noise = torch.div(torch.full_like(negatives, noise), negatives + (noise + 1e-7)).log()
        return -(from_data.sum() + from_noise.sum()) / len(out)


class CompiledContrastive(CompiledMomentum, PublishedContrastive):
    """Likewise of CRD."""


class FusedContrastive(FusedMomentum):
    """Likewise of CRD's module."""

    def loss(self, *views: Tensor, **options: Any) -> Tensor:
        return functional.sampled_contrastive_loss(*views, **options)
