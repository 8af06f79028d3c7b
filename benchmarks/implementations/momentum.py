"""The momentum memory's step: as published, compiled, and this package's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case
from benchmarks.implementations import fifo
from benchmarks.implementations.step import AutogradStep
from rrd_kernels import functional


class PublishedMomentum(AutogradStep):
    """What the published code does: gathers rows of both memories, [B, P, D] each, and reads its
    constants on the host at every step."""

    name = fifo.PublishedEager.name
    write_name = "update"
    waits_for_device = True
    rounds_similarities = True

    def forward(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        *memories, params = self.state
        constants = [value.item() for value in params]
        return self.loss(z_s, z_t, idx, contrast_idx, *memories, *constants)

    def write(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> None:
        *memories, params = self.state
        self.updated(z_s, z_t, idx, *memories, params[4].item())

    def loss(
        self,
        z_s: Tensor,
        z_t: Tensor,
        idx: Tensor,
        contrast_idx: Tensor,
        memory_v1: Tensor,
        memory_v2: Tensor,
        *constants: Any,
    ) -> Tensor:
        """Of similarities exp(s.m / T) / Z, [B, P]; the rows at idx move after they are taken. The
        constants are on the host or on the device."""
        student, teacher = F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)
        _, nce_t, z_v1, z_v2, nce_m = constants
        # Both are there at once, until this function ends.
        rows_v1 = self._gathered(memory_v1, contrast_idx)
        out_t = torch.exp(torch.bmm(rows_v1, teacher[:, :, None]) / nce_t) / z_v2
        rows_v2 = self._gathered(memory_v2, contrast_idx)
        out_s = torch.exp(torch.bmm(rows_v2, student[:, :, None]) / nce_t) / z_v1
        with torch.no_grad():
            self.update((student, teacher), idx, memory_v1, memory_v2, nce_m)
        return fifo.cross_entropy(out_s.squeeze(2) / self.tau_s, out_t.squeeze(2) / self.tau_t)

    def updated(self, z_s: Tensor, z_t: Tensor, idx: Tensor, *state: Any) -> None:
        """What is written alone."""
        self.update((F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)), idx, *state)

    @staticmethod
    def update(units: tuple[Tensor, Tensor], idx: Tensor, *state: Any) -> None:
        *memories, nce_m = state
        for memory, unit in zip(memories, units, strict=True):
            rows = torch.index_select(memory, 0, idx)
            rows.mul_(nce_m).add_(unit * (1 - nce_m))
            norm = rows.pow(2).sum(dim=1, keepdim=True).pow(0.5)
            memory.index_copy_(0, idx, rows / norm)

    @staticmethod
    def _gathered(memory: Tensor, contrast_idx: Tensor) -> Tensor:
        rows = torch.index_select(memory, 0, contrast_idx.view(-1))
        return rows.view(*contrast_idx.shape, memory.shape[1])


class CompiledMomentum(PublishedMomentum):
    """torch.compile of the published arithmetic, with its constants on the device: freed of its
    host syncs, and of the gathered rows where the compiler multiplies as it reads them."""

    name = fifo.Compiled.name
    waits_for_device = False

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self._loss, self._update = fifo.compiled(self.loss, self.updated)

    def forward(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        *memories, params = self.state
        return self._loss(z_s, z_t, idx, contrast_idx, *memories, *params)

    def write(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> None:
        *memories, params = self.state
        self._update(z_s, z_t, idx, *memories, params[4])


class FusedMomentum(AutogradStep):
    """This package's operators, in the order of its module, with no fall-back to the reference."""

    name = fifo.Fused.name
    write_name = "update"

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        _, self.nce_t, _, _, self.nce_m = self.state[2].tolist()

    def forward(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> Tensor:
        memory_v1, memory_v2, params = self.state
        views = (z_s, z_t, memory_v1, memory_v2, contrast_idx)
        normalizers, nce_t = params[2:4], self.nce_t
        functional.estimate_normalizers_(normalizers, *views, nce_t=nce_t, backend="fused")
        loss = functional.sampled_relational_loss(
            *views, normalizers, tau_s=self.tau_s, tau_t=self.tau_t, nce_t=nce_t, backend="fused"
        )
        self.write(z_s.detach(), z_t, idx, contrast_idx)
        return loss

    def write(self, z_s: Tensor, z_t: Tensor, idx: Tensor, contrast_idx: Tensor) -> None:
        for memory, rows in zip(self.state[:2], (z_s, z_t), strict=True):
            functional.momentum_update_(memory, idx, rows, self.nce_m, backend="fused")
