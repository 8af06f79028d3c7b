"""Fused distillation losses of Liger-Kernel and flash-linear-attention, where they are installed.

Both take one weight for the student and one for the teacher, here the memory twice, and one
temperature at most. Logits are linear in the inputs, so that each side is divided by its own
temperature before. Both return KL(teacher || student), whose gradient is that of the cross-entropy.
"""

import importlib
import importlib.util
from abc import abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import AutogradStep, FifoStep


class LibraryStep(AutogradStep, FifoStep):
    """A loss of a library that makes the logits of a chunk of the batch at a time."""

    rounds_similarities = True
    sums_otherwise = True
    returns_cross_entropy = False
    module: ClassVar[str]

    @classmethod
    def takes(cls, case: Case) -> bool:
        return importlib.util.find_spec(cls.module.partition(".")[0]) is not None

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        teacher = F.normalize(z_t, dim=1)
        self.enqueue(teacher)
        return self.divergence(F.normalize(z_s, dim=1) / self.tau_s, teacher / self.tau_t)

    def write(self, z_s: Tensor, z_t: Tensor) -> None:
        self.enqueue(F.normalize(z_t, dim=1))

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean KL divergence of the softmaxes of two [B, D] inputs' products with the memory."""


class LigerJSD(LibraryStep):
    """The generalised Jensen-Shannon divergence with beta = 0; backward waits for the device."""

    name = "Liger JSD"
    module = "liger_kernel.ops.fused_linear_jsd"
    waits_for_device = True

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        function = importlib.import_module(self.module).LigerFusedLinearJSDFunction
        labels, beta = None, 0.0
        return function.apply(student, self.memory, teacher, self.memory, labels, beta)


class FlaKLDiv(LibraryStep):
    name = "fla KL"
    module = "fla.modules.fused_kl_div"

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        loss = importlib.import_module(self.module).fused_kl_div_loss
        return loss(student, teacher, self.memory, self.memory)
