"""Block sizes by measurement, with RRD_TRITON_AUTOTUNE=1.

Off by default: a CUDA graph cannot capture a measurement, and ranks and runs may choose different
sizes, so that their results differ in the last bits.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rrd_kernels.triton.cards import FAMILIES, Config, Hardware, look_up
from rrd_kernels.triton.fifo.launches import FifoSettings, step_launches
from rrd_kernels.triton.fifo.plan import FifoPlan, make_plan
from rrd_kernels.triton.runtime.run import SharedMemoryError, run

_logger = logging.getLogger(__name__)
_best: dict[tuple[Any, ...], FifoPlan] = {}


def candidates(precision: str, dim: int, memory_bytes: int, need_grad: bool) -> list[Config]:
    """The block sizes of all families for these operands and this width."""
    found: dict[Config, None] = {}
    for family in FAMILIES.values():
        if need_grad:
            found |= dict.fromkeys(look_up(family.attention, precision, dim, memory_bytes))
        else:
            found[look_up(family.loss_only, precision, dim, memory_bytes)] = None
    return sorted(found)


def best_plan(
    z_s: Tensor,
    z_t: Tensor,
    memory: Tensor,
    settings: FifoSettings,
    hardware: Hardware,
    milliseconds: Callable[[Callable[[], object]], float] | None = None,
) -> FifoPlan:
    """The fastest plan, measured at the first call of each size, memory layout and settings.

    Args:
        milliseconds: returns a call's time; default: the median of Triton's ``do_bench``.
    """
    settings = settings._replace(enqueue="never")  # a measurement repeats the step
    (batch, dim), size = z_s.shape, memory.shape[0]
    key = batch, size, dim, memory.dtype, memory.stride(), settings, hardware
    if key in _best:
        return _best[key]
    if milliseconds is None:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "RRD_TRITON_AUTOTUNE=1 cannot measure block sizes while a CUDA graph is captured; "
                "run a step of this size before the capture, or unset it"
            )

        from triton.testing import do_bench

        def milliseconds(call: Callable[[], object]) -> float:
            return do_bench(call, warmup=5, rep=20, return_mode="median")

    times: dict[FifoPlan, float] = {}
    for config in candidates(settings.precision, dim, memory.element_size(), settings.need_grad):
        plan = make_plan(
            batch,
            size,
            dim,
            settings.precision,
            memory.element_size(),
            settings.need_grad,
            hardware,
            config,
            roles=settings.roles,
        )
        _, launches = step_launches(z_s, z_t, memory, None, settings, hardware, plan)
        try:
            times[plan] = milliseconds(functools.partial(run, launches))
        except SharedMemoryError:
            continue
    best = _best[key] = min(times, key=lambda plan: times[plan])
    _logger.info("B=%d K=%d D=%d %s: %s, %.3g ms", batch, size, dim, settings, best, times[best])
    return best
