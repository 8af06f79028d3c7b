"""The momentum memory's step: as published, and this package's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import (
    Compiled,
    Fused,
    PublishedEager,
    compiled,
    cross_entropy,
)
from benchmarks.implementations.step import AutogradStep
from rrd_kernels import functional


class MomentumStep(AutogradStep):
    """Both memories' rows at idx move after the similarities are taken."""

    write_name = "update"

    @property
    def memory_v1(self) -> Tensor:
        return self.state[0]

    @property
    def memory_v2(self) -> Tensor:
        return self.state[1]

    @property
    def params(self) -> Tensor:
        return self.state[2]


class PublishedMomentum(MomentumStep):
    """What the published code does: gathers rows of both memories, [B, P, D] each, and reads its
    constants on the host at every step."""

    name = PublishedEager.name
    waits_for_device = True
    rounds_similarities = True

    def forward(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        student = F.normalize(z_s, dim=1)
        teacher = F.normalize(z_t, dim=1)
        out_s, out_t = self._similarities(student, teacher, idx, contrast_idx)
        return cross_entropy(out_s / self.tau_s, out_t / self.tau_t)

    def write(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> None:
        nce_m = self.params[4].item()
        self._update(self.memory_v1, idx, F.normalize(z_s, dim=1), nce_m)
        self._update(self.memory_v2, idx, F.normalize(z_t, dim=1), nce_m)

    def _similarities(
        self, student: Tensor, teacher: Tensor, idx: Tensor, contrast_idx: Tensor
    ) -> tuple[Tensor, Tensor]:
        """exp(s.m / T) / Z of both, [B, P]; then moves the rows at idx."""
        _, nce_t, z_v1, z_v2, nce_m = (value.item() for value in self.params)
        # Both are there at once, until this function ends.
        rows_v1 = self._gathered(self.memory_v1, contrast_idx)
        out_t = torch.exp(torch.bmm(rows_v1, teacher[:, :, None]) / nce_t)
        rows_v2 = self._gathered(self.memory_v2, contrast_idx)
        out_s = torch.exp(torch.bmm(rows_v2, student[:, :, None]) / nce_t)
        out_s, out_t = out_s / z_v1, out_t / z_v2
        with torch.no_grad():
            self._update(self.memory_v1, idx, student, nce_m)
            self._update(self.memory_v2, idx, teacher, nce_m)
        return out_s.squeeze(2), out_t.squeeze(2)

    @staticmethod
    def _gathered(memory: Tensor, contrast_idx: Tensor) -> Tensor:
        rows = torch.index_select(memory, 0, contrast_idx.view(-1))
        return rows.view(*contrast_idx.shape, memory.shape[1])

    @staticmethod
    def _update(memory: Tensor, idx: Tensor, unit: Tensor, nce_m: float | Tensor) -> None:
        rows = torch.index_select(memory, 0, idx)
        rows.mul_(nce_m).add_(unit * (1 - nce_m))
        norm = rows.pow(2).sum(dim=1, keepdim=True).pow(0.5)
        memory.index_copy_(0, idx, rows / norm)


class CompiledMomentum(PublishedMomentum):
    """torch.compile of the published arithmetic, with its constants on the device: freed of its
    host syncs, and of the gathered rows where the compiler multiplies as it reads them."""

    name = Compiled.name
    waits_for_device = False

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self._loss, self._write = compiled(self._eager_loss, self._eager_write)

    def forward(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        return self._loss(z_s, z_t, idx, contrast_idx, *self.state)

    def write(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> None:
        self._write(z_s, z_t, idx, *self.state)

    def _eager_loss(
        self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor, *state: Tensor
    ) -> Tensor:
        memory_v1, memory_v2, params = state
        student = F.normalize(z_s, dim=1)
        teacher = F.normalize(z_t, dim=1)
        _, nce_t, z_v1, z_v2, nce_m = params
        # Both before a row moves.
        out_t = torch.exp(torch.bmm(memory_v1[contrast_idx], teacher[:, :, None]) / nce_t)
        out_s = torch.exp(torch.bmm(memory_v2[contrast_idx], student[:, :, None]) / nce_t)
        with torch.no_grad():
            self._update(memory_v1, idx, student, nce_m)
            self._update(memory_v2, idx, teacher, nce_m)
        out_s, out_t = (out_s / z_v1).squeeze(2), (out_t / z_v2).squeeze(2)
        return cross_entropy(out_s / self.tau_s, out_t / self.tau_t)

    def _eager_write(self, z_s: Tensor, z_t: Tensor, idx: Tensor, *state: Tensor) -> None:
        for memory, rows in zip(state[:2], (z_s, z_t), strict=True):
            self._update(memory, idx, F.normalize(rows, dim=1), state[2][4])


class FusedMomentum(MomentumStep):
    """This package's operators, in the order of its module, with no fall-back to the reference."""

    name = Fused.name

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        _, self.nce_t, _, _, self.nce_m = self.params.tolist()

    def forward(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        views = (z_s, z_t, self.memory_v1, self.memory_v2, contrast_idx)
        normalizers = self.params[2:4]
        functional.estimate_normalizers_(normalizers, *views, nce_t=self.nce_t, backend="fused")
        loss = functional.sampled_relational_loss(
            *views,
            normalizers,
            tau_s=self.tau_s,
            tau_t=self.tau_t,
            nce_t=self.nce_t,
            backend="fused",
        )
        self.write(z_s.detach(), z_t, idx, contrast_idx)
        return loss

    def write(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> None:
        for memory, rows in ((self.memory_v1, z_s), (self.memory_v2, z_t)):
            functional.momentum_update_(memory, idx, rows, self.nce_m, backend="fused")
