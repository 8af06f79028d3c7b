"""The implementations that are compared on a case."""

from collections.abc import Sequence

import torch

from benchmarks.cases import AnyCase, DrawCase, MomentumCase
from benchmarks.momentum import CompiledMomentum, FusedMomentum, PublishedMomentum
from benchmarks.negatives import PublishedLoader, Sampler
from benchmarks.peers import Compiled, Fused, PublishedEager
from benchmarks.sdpa import CpuFlash, Cudnn, Efficient, Flash, Math
from benchmarks.step import Step

#: Compiled anew for each size, for which some may not want to wait.
COMPILED: tuple[type[Step], ...] = (Compiled, CompiledMomentum)


def implementations(case: AnyCase, device: torch.device) -> Sequence[type[Step]]:
    """Those that run on ``device``, the published code first and this package last."""
    if isinstance(case, DrawCase):
        return [PublishedLoader, Sampler]
    if isinstance(case, MomentumCase):
        return [PublishedMomentum, CompiledMomentum, FusedMomentum]
    if device.type == "cpu":
        return [PublishedEager, Compiled, Math, CpuFlash, Fused]
    return [PublishedEager, Compiled, Math, Flash, Efficient, Cudnn, Fused]
