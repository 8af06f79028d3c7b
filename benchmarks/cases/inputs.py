"""The tensors that are drawn for a case: what its steps begin with, and batches."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.sizes import Case, MomentumCase
from rrd_kernels import ContrastSampler
from rrd_kernels.reference import estimate_normalizers_

#: For the FIFO memory: memory [K, D], pointer [1]. For the momentum memory: memory_v1 and memory_v2
#: [n_data, D], params [5].
State = tuple[Tensor, ...]
#: z_s and z_t [B, D]; for the momentum memory also idx [B] and contrast_idx [B, K + 1].
Batch = tuple[Tensor, ...]

CLASSES = 100


def draw(
    case: Case, device: torch.device, sets: int = 4, seed: int = 0
) -> tuple[State, Sequence[Batch]]:
    """What steps of ``case`` begin with, and ``sets`` batches.

    Samples have classes: without them each teacher row would be alone with itself, its probability
    1 on the slot that has just been written, and a wrong attention over the other rows would not
    show.
    """
    generator = torch.Generator(device).manual_seed(seed)
    options: Any = {"generator": generator, "device": device}
    centres = torch.randn(CLASSES, case.dim, **options)

    def embeddings(labels: Tensor) -> Batch:
        """z_s and z_t of samples of these classes."""
        return tuple(
            (centres[labels] + noise * torch.randn(len(labels), case.dim, **options)).to(case.dtype)
            for noise in (1.0, 0.3)
        )

    def labels(count: int) -> Tensor:
        return torch.randint(CLASSES, (count,), **options)

    if not isinstance(case, MomentumCase):
        memory = F.normalize(embeddings(labels(case.rows))[1].float(), dim=1).to(case.dtype)
        pointer = torch.zeros(1, dtype=torch.int64, device=device)
        return (memory, pointer), [embeddings(labels(case.batch)) for _ in range(sets)]

    # Memories that each sample has passed through once, and an epoch, in which it occurs once.
    classes = labels(case.n_data)
    memory_v1, memory_v2 = (
        F.normalize(rows.float(), dim=1).to(case.dtype) for rows in embeddings(classes)
    )
    sampler = ContrastSampler(classes, case.rows, **options)
    epoch = torch.randperm(case.n_data, **options)[: sets * case.batch].split(case.batch)
    batches = [(*embeddings(classes[idx]), idx, sampler(idx)) for idx in epoch]
    # Z is -1 until it is set.
    params = torch.tensor([case.rows, case.nce_t, -1, -1, case.nce_m], device=device)
    z_s, z_t, _, contrast_idx = batches[0]
    views = (z_s, z_t, memory_v1, memory_v2, contrast_idx)
    estimate_normalizers_(params[2:4], *views, nce_t=case.nce_t)
    return (memory_v1, memory_v2, params), batches
