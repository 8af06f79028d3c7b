"""Fused losses of PyTorch and, where they are installed, of Liger-Kernel and
flash-linear-attention, each with the memory as the classes' weights."""

from abc import abstractmethod
from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import AutogradStep, FifoStep, enqueue


class LibraryStep(AutogradStep, FifoStep):
    rounds_similarities = sums_otherwise = True
    compares_loss = False
    module: ClassVar[str]

    @classmethod
    def takes(cls, case: Case) -> bool:
        try:
            return find_spec(cls.module.partition(".")[0]) is not None
        except ValueError:  # a stand-in in its place, without a spec
            return False

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        teacher = enqueue(self.memory, self.pointer, z_t)
        # Logits are linear in the embeddings: temperatures can go before them.
        return self.loss(F.normalize(z_s, dim=1) / self.tau_s, teacher / self.tau_t)

    @abstractmethod
    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean, of embeddings [B, D] over their temperatures."""


class LinearCrossEntropy(LibraryStep):
    """PyTorch's (2.13 and later), with the teacher's softmax [B, K] as probabilities, and logits
    for a chunk of the batch at a time. In half precision its loss alone is off by percents."""

    name = "linear_cross_entropy"
    grows = False

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self.compares_loss = case.dtype == torch.float32

    @classmethod
    def takes(cls, case: Case) -> bool:
        return hasattr(torch.nn, "LinearCrossEntropyOptions")

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        target = (teacher @ self.memory.T).softmax(dim=1)
        options = torch.nn.LinearCrossEntropyOptions()  # without them nothing is chunked
        return F.linear_cross_entropy(student, self.memory, target, options=options)


class LigerJSD(LibraryStep):
    """With beta, the last argument, of 0 it is KL(teacher || student), whose gradient is ours."""

    name = "Liger JSD"
    module = "liger_kernel.ops.fused_linear_jsd"
    waits_for_device = True

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        function = import_module(self.module).LigerFusedLinearJSDFunction
        return function.apply(student, self.memory, teacher, self.memory, None, 0.0)


class FlaKLDiv(LibraryStep):
    """KL(teacher || student) too."""

    name = "fla KL"
    module = "fla.modules.fused_kl_div"

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        library = import_module(self.module)
        return library.fused_kl_div_loss(student, teacher, self.memory, self.memory)
