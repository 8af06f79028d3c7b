"""The implementations that are compared on a case."""

from collections.abc import Sequence

import torch

from benchmarks.cases.sizes import Case, DrawCase, MomentumCase
from benchmarks.implementations.fifo import Compiled, Fused, PublishedEager
from benchmarks.implementations.gpu_libraries import FlaKLDiv, LigerJSD
from benchmarks.implementations.linear_cross_entropy import LinearCrossEntropy
from benchmarks.implementations.momentum import CompiledMomentum, FusedMomentum, PublishedMomentum
from benchmarks.implementations.negatives import PublishedLoader, Sampler
from benchmarks.implementations.sdpa import CpuFlash, Cudnn, Efficient, Flash, Math
from benchmarks.implementations.step import Step

#: Compiled anew for each size, for which some may not want to wait.
COMPILED: tuple[type[Step], ...] = (Compiled, CompiledMomentum)


def implementations(case: Case, device: torch.device) -> Sequence[type[Step]]:
    """Those that run on ``device`` with the case's dtype and are installed, the published code
    first and this package last."""
    if isinstance(case, DrawCase):
        return [PublishedLoader, Sampler]
    if isinstance(case, MomentumCase):
        return [PublishedMomentum, CompiledMomentum, FusedMomentum]
    kinds: list[type[Step]] = [PublishedEager, Compiled, LinearCrossEntropy, Math]
    if device.type == "cpu":
        kinds += [CpuFlash, Fused]
    else:
        kinds += [Flash, Efficient, Cudnn, LigerJSD, FlaKLDiv, Fused]
    return [kind for kind in kinds if kind.takes(case)]
