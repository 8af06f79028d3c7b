"""How long a report measures what."""

from dataclasses import dataclass, replace

import torch

#: What a report consists of, in its order.
PARTS = ("cases", "host", "breakdown", "scaling")


@dataclass(frozen=True)
class Plan:
    """Seconds, and sizes, such that all of it stays under ten minutes on two cores."""

    #: Square matrices for torch.mm.
    matmul_sizes: tuple[int, ...]
    #: For the copy: beyond any cache.
    copy_bytes: int
    #: Of each ceiling.
    ceiling_seconds: float
    #: Of each case, all implementations together; seven rounds at least.
    case_seconds: float
    #: B and K, the official ones.
    host_size: tuple[int, int]
    host_seconds: float
    breakdown_steps: int
    #: Of each size along an axis.
    point_seconds: float


CPU_PLAN = Plan((2048, 4096), 1 << 28, 1.0, 3.0, (64, 16384), 4.0, 5, 0.3)
CUDA_PLAN = Plan((4096, 8192), 1 << 30, 0.3, 1.0, (64, 16384), 4.0, 20, 0.2)
QUICK_PLAN = Plan((256,), 1 << 20, 0.01, 0.0, (8, 32), 0.0, 1, 0.0)


def plan_for(device: torch.device, quick: bool = False, case_seconds: float | None = None) -> Plan:
    """``case_seconds``, if given, in place of the device's."""
    plan = QUICK_PLAN if quick else CPU_PLAN if device.type == "cpu" else CUDA_PLAN
    return plan if case_seconds is None else replace(plan, case_seconds=case_seconds)
