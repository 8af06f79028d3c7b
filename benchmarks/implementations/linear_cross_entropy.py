"""torch.nn.functional.linear_cross_entropy (PyTorch 2.13 and later) as this loss would use it."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case
from benchmarks.implementations.step import AutogradStep, FifoStep


class LinearCrossEntropy(AutogradStep, FifoStep):
    """The memory as the classes' weights and the teacher's softmax, [B, K], as their probabilities.

    The student's logits are made for a chunk of the batch at a time; the target is whole. In half
    precision the chunks' losses are added in that format: of the loss, not of the gradient, this
    takes percents.
    """

    name = "linear_cross_entropy"
    rounds_similarities = True
    sums_otherwise = True

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self.options = torch.nn.LinearCrossEntropyOptions()

    @classmethod
    def takes(cls, case: Case) -> bool:
        return hasattr(F, "linear_cross_entropy")

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        teacher = F.normalize(z_t, dim=1)
        self.enqueue(teacher)
        target = (teacher @ self.memory.T / self.tau_t).softmax(dim=1)
        student = F.normalize(z_s, dim=1) / self.tau_s
        with warnings.catch_warnings():
            # It warns where it leaves the chunked path for one that makes all logits.
            warnings.simplefilter("error")
            return F.linear_cross_entropy(student, self.memory, target, options=self.options)

    def write(self, z_s: Tensor, z_t: Tensor) -> None:
        self.enqueue(F.normalize(z_t, dim=1))
