"""What every implementation that is compared does: one training step, or one batch of draws."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from benchmarks.cases import AnyCase, Case
from benchmarks.inputs import Batch, State

T = TypeVar("T")


class Step(ABC):
    """One implementation of what a case measures.

    Args:
        case: the settings.
        state: as drawn for the case; each step owns a copy, which its calls go on changing.
    """

    name: ClassVar[str]
    #: Waits for the device in the middle, which a CUDA graph cannot hold.
    waits_for_device: ClassVar[bool] = False

    def __init__(self, case: AnyCase, state: State) -> None:
        self.state = tuple(tensor.clone() for tensor in state)

    # Any: each kind takes the tensors of its batches by their names.
    @abstractmethod
    def __call__(self, *batch: Any, **_: Any) -> Any:
        """What is timed, of one batch."""

    @classmethod
    def why_not(cls, case: AnyCase) -> str | None:
        """The reason for which ``case`` is left out, if it is."""
        return None


def over_batches(step: Callable[..., T], batches: Sequence[Batch]) -> Callable[[], T]:
    """Each call takes the next batch, so that none is in cache because it was just there."""
    following = itertools.cycle(batches)
    return lambda: step(*next(following))


class TrainingStep(Step):
    """Mean loss, its gradient with respect to z_s, and what is written to the memory.

    Called with a batch, it returns the loss, a scalar, and the gradient [B, D] times loss_scale.
    """

    #: Rounds similarities to the embeddings' dtype, as the published code does.
    rounds_similarities: ClassVar[bool] = False

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self.tau_s = case.tau_s
        self.tau_t = case.tau_t
        # As GradScaler does: p / B as such would underflow in float16.
        self.loss_scale = 1024.0 if case.dtype == torch.float16 else 1.0

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

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self.memory, self.pointer = self.state
