"""The implementations that are compared on a case."""

from collections.abc import Sequence

import torch

from benchmarks.cases.sizes import Case, MomentumCase
from benchmarks.implementations.fifo import Compiled, Fused, PublishedEager
from benchmarks.implementations.libraries import FlaKLDiv, LigerJSD, LinearCrossEntropy
from benchmarks.implementations.momentum import CompiledMomentum, FusedMomentum, PublishedMomentum
from benchmarks.implementations.sdpa import CpuFlash, Cudnn, Efficient, Flash, Math
from benchmarks.implementations.step import Step

#: Compiled anew for each size, for which some may not want to wait.
COMPILED: tuple[type[Step], ...] = (Compiled, CompiledMomentum)


def implementations(case: Case, device: torch.device) -> Sequence[type[Step]]:
    """Those that run on ``device`` with the case's dtype and are installed, the published code
    first and this package last."""
    if isinstance(case, MomentumCase):
        return [PublishedMomentum, CompiledMomentum, FusedMomentum]
    on_gpu: list[type[Step]] = [Flash, Efficient, Cudnn, LigerJSD, FlaKLDiv]
    of_device = [CpuFlash] if device.type == "cpu" else on_gpu
    kinds = [PublishedEager, Compiled, LinearCrossEntropy, Math, *of_device, Fused]
    return [kind for kind in kinds if kind.takes(case)]
