"""The tensors that are drawn for a case: what its steps begin with, and batches."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.sizes import Case, DrawCase, MomentumCase
from rrd_kernels import ContrastSampler
from rrd_kernels.reference import estimate_normalizers_

#: For the FIFO memory: memory [K, D], pointer [1]. For the momentum memory: memory_v1 and memory_v2
#: [n_data, D], params [5]. For draws: the classes [n_data] of all samples.
State = tuple[Tensor, ...]
#: z_s and z_t [B, D]; for the momentum memory also idx [B] and contrast_idx [B, K + 1]. For draws:
#: idx [B].
Batch = tuple[Tensor, ...]

CLASSES = 100


def draw(
    case: Case, device: torch.device, sets: int = 4, seed: int = 0
) -> tuple[State, Sequence[Batch]]:
    """What steps of ``case`` begin with, and ``sets`` batches."""
    generator = torch.Generator(device).manual_seed(seed)
    if isinstance(case, DrawCase):
        labels = _labels(case.n_data, generator)
        return (labels,), [(idx,) for idx in _samples(case, sets, generator)]
    if isinstance(case, MomentumCase):
        return _momentum(case, sets, generator)
    return _fifo(case, sets, generator)


def _fifo(case: Case, sets: int, generator: torch.Generator) -> tuple[State, Sequence[Batch]]:
    """A memory of unit rows and embeddings."""
    features = _features(case, generator)
    rows = features(_labels(case.rows, generator))[1]
    memory = F.normalize(rows.float(), dim=1).to(case.dtype)
    pointer = torch.zeros(1, dtype=torch.int64, device=generator.device)
    batches = [features(_labels(case.batch, generator)) for _ in range(sets)]
    return (memory, pointer), batches


def _momentum(
    case: MomentumCase, sets: int, generator: torch.Generator
) -> tuple[State, Sequence[Batch]]:
    """Memories that each sample has passed through once, Z that is set, rows of other classes."""
    features = _features(case, generator)
    labels = _labels(case.n_data, generator)
    memory_v1, memory_v2 = (
        F.normalize(rows.float(), dim=1).to(case.dtype) for rows in features(labels)
    )
    sampler = ContrastSampler(labels, case.rows, device=generator.device, generator=generator)
    indices = _samples(case, sets, generator)
    batches = [(*features(labels[idx]), idx, sampler(idx)) for idx in indices]
    # Z is -1 until it is set.
    params = torch.tensor([case.rows, case.nce_t, -1, -1, case.nce_m], device=generator.device)
    z_s, z_t, _, contrast_idx = batches[0]
    views = (z_s, z_t, memory_v1, memory_v2, contrast_idx)
    estimate_normalizers_(params[2:4], *views, nce_t=case.nce_t)
    return (memory_v1, memory_v2, params), batches


def _features(case: Case, generator: torch.Generator) -> Callable[[Tensor], Batch]:
    """Draws z_s and z_t for samples of given classes.

    Without classes each teacher row would be alone with itself, its probability 1 on the slot that
    has just been written, and a wrong attention over the other rows would not show.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    centres = normal(CLASSES, case.dim)

    def features(labels: Tensor) -> Batch:
        student = centres[labels] + normal(len(labels), case.dim)
        teacher = centres[labels] + 0.3 * normal(len(labels), case.dim)
        return student.to(case.dtype), teacher.to(case.dtype)

    return features


def _labels(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=generator, device=generator.device)


def _samples(case: MomentumCase, sets: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Batches of an epoch: no sample occurs twice."""
    order = torch.randperm(case.n_data, generator=generator, device=generator.device)
    return order[: sets * case.batch].split(case.batch)
