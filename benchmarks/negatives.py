"""Drawing the rows that the momentum memory compares a batch with, on the host."""

from abc import abstractmethod

import torch
from torch import Tensor

from benchmarks.cases import AnyCase
from benchmarks.inputs import Batch, State
from benchmarks.peers import Fused
from benchmarks.step import Step
from rrd_kernels import ContrastSampler


class Draw(Step):
    """For each sample itself, then K distinct ones of other classes: int64 [B, K + 1]."""

    @abstractmethod
    def __call__(self, idx: Tensor) -> Tensor: ...


class PublishedLoader(Draw):
    """What the published data set does for each sample, in one process, and the stacking."""

    name = "published loader"

    def __init__(self, case: AnyCase, state: State) -> None:
        super().__init__(case, state)
        (targets,) = self.state
        self.targets = targets.tolist()
        self.size = case.rows
        self.negatives = [
            (targets != label).nonzero()[:, 0].numpy() for label in range(max(self.targets) + 1)
        ]

    def __call__(self, idx: Tensor) -> Tensor:
        import numpy as np  # a machine with PyTorch and little else may lack it

        columns = []
        for sample in idx.tolist():
            negatives = self.negatives[self.targets[sample]]
            drawn = np.random.choice(negatives, self.size, replace=False)
            columns.append(torch.from_numpy(np.hstack(([sample], drawn))))
        return torch.stack(columns)


class Sampler(Draw):
    """This package's."""

    name = Fused.name

    def __init__(self, case: AnyCase, state: State) -> None:
        super().__init__(case, state)
        self.sampler = ContrastSampler(self.state[0], case.rows)

    def __call__(self, idx: Tensor) -> Tensor:
        return self.sampler(idx)


class DrawAgreement:
    """Whether draws are what they are to be.

    Args:
        state: the classes of all samples.
        batch: the samples that are drawn for.
    """

    def __init__(self, state: State, batch: Batch) -> None:
        (self._targets,), (self._idx,) = state, batch

    def check(self, step: Step) -> None:
        """Draws once.

        Raises:
            ArithmeticError: the first column is not the sample, or another is of its class or
                occurs twice.
        """
        columns = step(self._idx)
        own, drawn = columns[:, 0], columns[:, 1:]
        others = self._targets[drawn] != self._targets[self._idx, None]
        distinct = drawn.sort(dim=1).values.diff(dim=1) > 0
        if not (torch.equal(own, self._idx) and others.all() and distinct.all()):
            raise ArithmeticError(f"{step.name} does not draw distinct samples of other classes")
