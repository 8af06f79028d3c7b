"""What every implementation that is compared does: one training step, or one batch of draws."""

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case


class Step(ABC):
    """One implementation of what a case measures.

    Args:
        case: the settings.
        state: as drawn for the case; each step owns a copy, which its calls go on changing.
    """

    name: ClassVar[str]
    #: Waits for the device in the middle, which a CUDA graph cannot hold.
    waits_for_device: ClassVar[bool] = False

    def __init__(self, case: Case, state: State) -> None:
        self.state = tuple(tensor.clone() for tensor in state)

    # Any: each kind takes the tensors of its batches by their names.
    @abstractmethod
    def __call__(self, *batch: Any, **_: Any) -> Any:
        """What is timed, of one batch."""

    def twin(self) -> Self:
        """The same with a copy of its state as it is now; what has been compiled is shared."""
        other = copy.copy(self)
        other.state = tuple(tensor.clone() for tensor in self.state)
        return other

    @property
    def memory_bytes(self) -> int:
        """Of what is kept between steps."""
        return 0

    @classmethod
    def takes(cls, case: Case) -> bool:
        """Whether it is there and takes the case's dtype."""
        return True


class TrainingStep(Step):
    """Mean loss, its gradient with respect to z_s, and what is written to the memory.

    Called with a batch, it returns the loss, a scalar, and the gradient [B, D] times loss_scale.
    """

    #: Rounds similarities to the embeddings' dtype, as the published code does.
    rounds_similarities: ClassVar[bool] = False
    #: A library's that sums in an order and a format of its own: it may err by what the published
    #: code may, whatever that does err by.
    sums_otherwise: ClassVar[bool] = False
    #: Its loss is the cross-entropy, not the divergence, which lacks the teacher's entropy.
    returns_cross_entropy: ClassVar[bool] = True
    #: What the part of a step that writes to the memory is called.
    write_name: ClassVar[str] = "enqueue"

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self.tau_s = case.tau_s
        self.tau_t = case.tau_t
        self.taus: dict[str, Any] = {"tau_s": case.tau_s, "tau_t": case.tau_t}
        # As GradScaler does: p / B as such would underflow in float16.
        self.loss_scale = 1024.0 if case.dtype == torch.float16 else 1.0

    @property
    def memory_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state)

    @abstractmethod
    def write(self, *batch: Any) -> None:
        """What a step of the batch writes to the memory, alone."""


class AutogradStep(TrainingStep):
    """One that is differentiated by autograd, so that its halves can be called alone."""

    def __call__(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        z_s, *others = batch
        z_s = z_s.detach().requires_grad_()
        loss = self.forward(z_s, *others)
        return loss.detach(), self.backward(loss, z_s)

    @abstractmethod
    def forward(self, *batch: Any) -> Tensor:
        """The loss, with what is written; of a batch whose z_s requires a gradient."""

    def backward(self, loss: Tensor, z_s: Tensor) -> Tensor:
        """The gradient [B, D] times loss_scale."""
        loss.backward(torch.full_like(loss, self.loss_scale))
        assert z_s.grad is not None
        return z_s.grad


class FifoStep(TrainingStep):
    """The teacher's rows are enqueued first."""

    @property
    def memory(self) -> Tensor:
        return self.state[0]

    @property
    def pointer(self) -> Tensor:
        return self.state[1]

    def enqueue(self, teacher: Tensor) -> None:
        """Unit rows [B, D] enter, without a host sync."""
        batch, rows = len(teacher), len(self.memory)
        slots = (self.pointer + torch.arange(batch, device=teacher.device)) % rows
        self.memory[slots] = teacher.to(self.memory.dtype)
        self.pointer.add_(batch).remainder_(rows)
