"""A small distillation that one process or several train, and its inputs."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rrd_kernels import CRDLoss, RRDLoss

N_DATA, SAMPLES, STEPS = 50, 12, 10
SIZES = {"s_dim": 10, "t_dim": 9, "feat_dim": 8}

#: Settings of the memories that the tests train with. Thirty rows are passed four times.
MEMORIES: dict[str, dict[str, Any]] = {
    "fifo 2025": {"nce_k": 30},
    "fifo 2024": {"nce_k": 30, "protocol": "2024"},
    "fifo slots": {"nce_k": 30, "slot_momentum": 0.5, "start": "unit"},
    "momentum": {"memory_type": "momentum", "n_data": N_DATA, "nce_k": 6},
    "cosine": {
        "memory_type": "momentum",
        "n_data": N_DATA,
        "nce_k": 6,
        "similarity": "cosine",
    },
    "crd": {"loss": CRDLoss, "n_data": N_DATA, "nce_k": 6},
}


class Distiller(nn.Module):
    """A student and a criterion; called with a batch, it returns the loss."""

    def __init__(self, *, loss: type[nn.Module] = RRDLoss, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.student = nn.Sequential(nn.Linear(6, 10), nn.Tanh()).double()
        self.criterion = loss(**SIZES, dtype=torch.float64, **settings)

    def forward(self, x: Tensor, f_t: Tensor, *samples: Tensor, **options: Any) -> Tensor:
        return self.criterion(self.student(x), f_t, *samples, **options)


def batches(seed: int = 5) -> list[tuple[Tensor, ...]]:
    """Inputs, teacher's features, samples' numbers and columns of each step."""
    generator = torch.Generator().manual_seed(seed)

    def batch() -> tuple[Tensor, ...]:
        x = torch.randn(SAMPLES, 6, dtype=torch.float64, generator=generator)
        f_t = torch.randn(SAMPLES, 9, dtype=torch.float64, generator=generator)
        # Some samples are twice in a batch, on one rank or on two.
        idx = torch.randint(N_DATA, (SAMPLES,), generator=generator)
        contrast_idx = torch.randint(N_DATA, (SAMPLES, 7), generator=generator)
        contrast_idx[:, 0] = idx
        return x, f_t, idx, contrast_idx

    return [batch() for _ in range(STEPS)]


def shares(world: int, uneven: bool) -> list[int]:
    """How many of a batch's samples each rank takes."""
    if not uneven:
        return [SAMPLES // world] * world
    return {1: [12], 2: [8, 4], 4: [5, 0, 4, 3]}[world]


def share_of(batch: tuple[Tensor, ...], rank: int, sizes: list[int]) -> tuple[Tensor, ...]:
    """A rank's part of a batch."""
    first = sum(sizes[:rank])
    return tuple(part[first : first + sizes[rank]] for part in batch)


@dataclass
class Trajectory:
    """What a training left behind."""

    losses: list[Tensor] = field(default_factory=list)
    first_gradients: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


def train(module: nn.Module, plain: nn.Module, rank: int, sizes: list[int]) -> Trajectory:
    """Ten steps of SGD on ``module``, which calls ``plain``, perhaps through DDP."""
    found = Trajectory()
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.3)
    for batch in batches():
        optimizer.zero_grad()
        loss = module(*share_of(batch, rank, sizes))
        loss.backward()
        found.losses.append(loss.detach())
        if not found.first_gradients:
            found.first_gradients = {
                name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None
            }
        optimizer.step()
    found.state = {name: value.clone() for name, value in plain.state_dict().items()}
    return found
