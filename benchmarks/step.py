"""What every implementation that is compared does: one training step."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.cases import Case


class Step(ABC):
    """Enqueue the teacher's rows, then the mean loss and its gradient with respect to z_s.

    Args:
        memory: [K, D] unit rows; each step owns a copy, which its calls go on filling.
        tau_s: student temperature.
        tau_t: teacher temperature.
    """

    name: ClassVar[str]
    #: Waits for the device in the middle, which a CUDA graph cannot hold.
    waits_for_device: ClassVar[bool] = False
    #: Rounds similarities to the embeddings' dtype, as the published code does.
    rounds_similarities: ClassVar[bool] = False

    def __init__(self, memory: Tensor, tau_s: float, tau_t: float) -> None:
        self.memory = memory.clone()
        self.pointer = torch.zeros(1, dtype=torch.int64, device=memory.device)
        self.tau_s = tau_s
        self.tau_t = tau_t
        # As GradScaler does: p / B as such would underflow in float16.
        self.loss_scale = 1024.0 if memory.dtype == torch.float16 else 1.0

    @abstractmethod
    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, a scalar, and gradient [B, D] times loss_scale, for unnormalised embeddings."""

    @classmethod
    def why_not(cls, case: Case) -> str | None:
        """The reason for which ``case`` is left out, if it is."""
        return None

    def _backward(self, loss: Tensor, z_s: Tensor) -> tuple[Tensor, Tensor]:
        loss.backward(torch.full_like(loss, self.loss_scale))
        assert z_s.grad is not None
        return loss.detach(), z_s.grad
