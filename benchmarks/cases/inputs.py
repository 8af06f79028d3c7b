"""The tensors that are drawn for a case: what its steps begin with, and batches."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.sizes import Case, MomentumCase
from rrd_kernels import ContrastSampler
from rrd_kernels.reference import estimate_normalizers_

#: memory [K, D] and pointer [1]; or memory_v1 and memory_v2 [n_data, D], and params [5].
State = tuple[Tensor, ...]
#: z_s and z_t [B, D]; for the momentum memory also idx [B] and contrast_idx [B, K + 1].
Batch = tuple[Tensor, ...]

CLASSES = 100


def draw(
    case: Case, device: torch.device, sets: int = 4, seed: int = 0
) -> tuple[State, list[Batch]]:
    """What steps of ``case`` begin with, and ``sets`` batches. Samples have classes: else a teacher
    row would be alone with its slot, and a wrong attention to others would not show."""
    options: Any = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    centres = torch.randn(CLASSES, case.dim, **options)

    def labels(count: int) -> Tensor:
        return torch.randint(CLASSES, (count,), **options)

    def embeddings(classes: Tensor) -> Batch:
        noises = (scale * torch.randn(len(classes), case.dim, **options) for scale in (1.0, 0.3))
        return tuple((centres[classes] + noise).to(case.dtype) for noise in noises)

    if not isinstance(case, MomentumCase):
        memory = F.normalize(embeddings(labels(case.rows))[1].float(), dim=1).to(case.dtype)
        pointer = torch.zeros(1, dtype=torch.int64, device=device)
        return (memory, pointer), [embeddings(labels(case.batch)) for _ in range(sets)]

    # Memories that each sample has passed through once, and an epoch, in which it occurs once.
    classes = labels(case.n_data)
    units = (F.normalize(rows.float(), dim=1) for rows in embeddings(classes))
    v1, v2 = (rows.to(case.memory_dtype) for rows in units)
    sampler = ContrastSampler(classes, case.rows, **options)
    epoch = torch.randperm(case.n_data, **options)[: sets * case.batch].split(case.batch)
    batches = [(*embeddings(classes[idx]), idx, sampler(idx)) for idx in epoch]
    # Z is -1 until it is set.
    params = torch.tensor([case.rows, case.nce_t, -1, -1, case.nce_m], device=device)
    z_s, z_t, _, contrast_idx = batches[0]
    estimate_normalizers_(params[2:4], z_s, z_t, v1, v2, contrast_idx, nce_t=case.nce_t)
    return (v1, v2, params), batches
