"""One training step, as every implementation that is compared does it."""

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case


class Step(ABC):
    """Mean loss, its gradient with respect to the embeddings that are trained, and what is written
    to the memory. Each owns a copy of the drawn ``state``, which its calls go on changing."""

    name: ClassVar[str]
    waits_for_device = False  #: in the middle, which a CUDA graph cannot hold
    rounds_similarities = False  #: to the embeddings' dtype, as the published code does
    sums_otherwise = False  #: in a library's order and format
    grows = True  #: measured as sizes grow: not what compiles, nor others with B×K matrices
    compares_loss = True  #: not a divergence's, which lacks the teacher's entropy
    cancels = False  #: in logarithms of numbers near one, which the reference does not take

    def __init__(self, case: Case, state: State) -> None:
        self.state = tuple(tensor.clone() for tensor in state)
        self.case = case = self.computes(case)
        self.tau_s, self.tau_t = case.tau_s, case.tau_t
        # As GradScaler does: p / B as such would underflow in float16.
        self.loss_scale = 1024.0 if case.dtype == torch.float16 else 1.0

    @abstractmethod
    def __call__(self, *batch: Any) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the gradient times loss_scale: [B, D], [2, B, D] where both
        embeddings are trained, empty where none is."""

    def twin(self) -> Self:
        """The same with a copy of its state as it is now; what has been compiled is shared."""
        other = copy.copy(self)
        other.state = tuple(tensor.clone() for tensor in self.state)
        return other

    @classmethod
    def computes(cls, case: Case) -> Case:
        """What it is compared with the reference of, where it stands beside ``case`` only."""
        return case

    def as_drawn(self) -> State:
        """The state in the layout in which it was drawn."""
        return self.state

    @classmethod
    def takes(cls, case: Case) -> bool:
        """Whether it is installed and takes the case's dtype."""
        return True


class AutogradStep(Step):
    def __call__(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        trained = self.case.trained
        leaves = [z.detach().requires_grad_() for z in batch[:trained]]
        loss = self.forward(*leaves, *batch[trained:])
        if not leaves:
            return loss, loss.new_zeros(0)
        loss.backward(torch.full_like(loss, self.loss_scale))
        grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(grads) == trained
        return loss.detach(), grads[0] if trained == 1 else torch.stack(grads)

    @abstractmethod
    def forward(self, *batch: Any) -> Tensor:
        """The loss; writes to the memory."""


class FifoStep(Step):
    memory = property(lambda self: self.state[0])
    pointer = property(lambda self: self.state[1])


def enqueue(memory: Tensor, pointer: Tensor, z_t: Tensor, newest_first: bool = False) -> Tensor:
    """The unit rows of z_t [B, D] enter, without a host sync, and are returned."""
    unit = F.normalize(z_t, dim=1)
    first = pointer - len(unit) if newest_first else pointer
    slots = (first + torch.arange(len(unit), device=pointer.device)) % len(memory)
    memory[slots] = unit.to(memory.dtype)
    pointer.add_(-len(unit) if newest_first else len(unit)).remainder_(len(memory))
    return unit
