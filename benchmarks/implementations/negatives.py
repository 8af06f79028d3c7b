"""Drawing the rows that the momentum memory compares a batch with, on the host: for each sample
itself, then K distinct ones of other classes, int64 [B, K + 1]."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases.inputs import State
from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import Fused, PublishedEager
from benchmarks.implementations.step import Step
from rrd_kernels import ContrastSampler


class PublishedLoader(Step):
    """What the published data set does for each sample, in one process, and the stacking."""

    name = PublishedEager.name

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        (targets,) = self.state
        self.targets, self.size = targets.tolist(), case.rows
        classes = range(max(self.targets) + 1)
        self.negatives = [(targets != label).nonzero()[:, 0].numpy() for label in classes]

    def __call__(self, idx: Tensor) -> Tensor:
        columns = []
        for sample in idx.tolist():
            negatives = self.negatives[self.targets[sample]]
            drawn = np.random.choice(negatives, self.size, replace=False)
            columns.append(torch.from_numpy(np.hstack(([sample], drawn))))
        return torch.stack(columns)


class Sampler(Step):
    """This package's."""

    name = Fused.name

    def __init__(self, case: Case, state: State) -> None:
        super().__init__(case, state)
        self.sampler = ContrastSampler(self.state[0], case.rows)

    def __call__(self, idx: Tensor) -> Tensor:
        return self.sampler(idx)
