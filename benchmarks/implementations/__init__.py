"""The implementations that are compared on a case."""

import torch

from benchmarks.cases.sizes import Case, ContrastiveCase, FamilyCase, MomentumCase
from benchmarks.implementations.family import PUBLISHED, Products, SoftLoss
from benchmarks.implementations.fifo import Compiled, Fused, PublishedEager
from benchmarks.implementations.libraries import FlaKLDiv, LigerJSD, LinearCrossEntropy
from benchmarks.implementations.momentum import (
    CompiledContrastive,
    CompiledMomentum,
    FusedContrastive,
    FusedMomentum,
    PublishedContrastive,
    PublishedMomentum,
)
from benchmarks.implementations.sdpa import ON_GPU, CpuFlash, Math
from benchmarks.implementations.step import Step


def implementations(case: Case, device: torch.device, compiled: bool = True) -> list[type[Step]]:
    """Those that run on ``device`` with the case's dtype and are installed, the published code
    first and this package last; torch.compile, which compiles anew for each size, if wanted."""
    kinds: list[type[Step]] = [PublishedMomentum, CompiledMomentum, FusedMomentum]
    if isinstance(case, ContrastiveCase):
        kinds = [PublishedContrastive, CompiledContrastive, FusedContrastive]
    elif isinstance(case, FamilyCase):
        kinds = [PUBLISHED[case.method], CpuFlash, Products, SoftLoss, Fused]
    elif not isinstance(case, MomentumCase):
        of_device = [CpuFlash] if device.type == "cpu" else [*ON_GPU, LigerJSD, FlaKLDiv]
        kinds = [PublishedEager, Compiled, LinearCrossEntropy, Math, *of_device, Fused]
    return [kind for kind in kinds if kind.takes(case) and (compiled or kind.name != Compiled.name)]
