"""Where the microseconds of one step go on the host.

Calls that each contain the one before are timed in turn, and a layer's time is the median over the
rounds of their difference: on one sample and two rows (one row alone would have no gradient to
check), where the kernels do not drown them. What a CPU's kernels take is their time at full size
beyond the operator's on two rows; a GPU's run beside the host, and are timed in a CUDA graph. The
larger matrices of nn.Linear are in none of the layers.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import Fused
from benchmarks.measuring import cuda, hardware
from benchmarks.measuring.clocks import interleaved, wait_for, wall_time
from benchmarks.measuring.run import Row, timing
from benchmarks.measuring.turns import copies_wanted, one_by_one
from rrd_kernels import RRDLoss, functional
from rrd_kernels import validation as check

#: The official B and K.
SIZE, QUICK_SIZE = (64, 16384), (8, 32)
#: Widths of the published student's and teacher's features (resnet8x4, resnet32x4).
S_DIM, T_DIM, DIM = 64, 256, 128
#: For each look at the clock: so few that other work seldom comes between.
CALLS = 5
HOST = "host"
#: What the layer of the kernels' own time begins with, and the line of the whole step.
KERNELS, WHOLE = "kernels", "the whole step, measured for itself"
#: What a call takes beyond the one before.
LAYERS = {
    "operator": "operator: dispatcher, allocations",  # and a GPU's launches
    "autograd": "autograd: a node for the gradient",
    "functional": "Python: checks and defaults",
    "projected": "two nn.Linear: the embeddings",
    "module": "Python: modules",
    "step": "backward: engine, gradients of loss and nn.Linear",
}


def calls(batch: int, rows: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Of a step of ``RRDLoss``: each contains the one before, after the kernels alone."""
    widths: Any = {"s_dim": S_DIM, "t_dim": T_DIM, "feat_dim": DIM}
    criterion = RRDLoss(**widths, nce_k=rows, start="unit", backend="fused", device=device)
    criterion.warmup(batch)
    memory: Any = criterion.memory
    state = (memory.queue, memory.queue_ptr)
    features = [torch.randn(batch, width, device=device) for width in (S_DIM, T_DIM)]
    z_s, z_t = (z.detach() for z in memory.project(*features))
    leaf = z_s.clone().requires_grad_()
    taus: Any = {"tau_s": criterion.tau_s, "tau_t": criterion.tau_t}
    settings = (*taus.values(), True, None, check.REDUCTIONS.index("mean"), True, 0.0)
    operators: Any = torch.ops.rrd_kernels
    step: Any = partial(functional.relational_step_, unit_memory=True, backend="fused", **taus)
    return {
        # All that is computed in forward, the gradient included, and no autograd.
        "kernels": lambda: operators.relational_step_forward_(*state, z_s, z_t, *settings, True),
        "operator": lambda: operators.relational_step_(*state, z_s, z_t, *settings),
        "autograd": lambda: operators.relational_step_(*state, leaf, z_t, *settings),
        "functional": lambda: step(leaf, z_t, *state),
        "projected": lambda: step(*memory.project(*features), *state),
        "module": lambda: criterion(*features),
        "step": lambda: criterion(*features).backward(),
    }


def profile(device: torch.device, seconds: float, quick: bool = False) -> Iterator[Row]:
    """A row for each layer of a step, the whole of it last; at least seven rounds."""
    size = QUICK_SIZE if quick else SIZE
    case = Case(*size, "float32", DIM)
    copies = copies_wanted(case.bytes, hardware.cache_bytes(device))
    one, full = calls(1, 2, device), [calls(*size, device) for _ in range(copies)]
    whole, kernels = ([each[name] for each in full] for name in ("step", "kernels"))
    timers: dict[str, Callable[[], float]] = {
        name: partial(_host_time, one[name], device) for name in LAYERS
    }
    timers[WHOLE] = partial(wall_time, one_by_one(whole), device)
    names, before = dict(LAYERS), {upper: lower for lower, upper in pairwise(LAYERS)}
    if device.type == "cpu":
        timers[KERNELS] = partial(wall_time, one_by_one(kernels), device)
        before[KERNELS] = "operator"
    else:
        replay = cuda.capture(kernels)[0].replay
        timers[KERNELS] = lambda: cuda.device_time(replay, CALLS) / copies
        names[KERNELS] = f"{KERNELS}, beside the host"
    times = {name: np.array(taken) for name, taken in interleaved(timers, seconds).items()}
    for name in (KERNELS, *LAYERS, WHOLE):
        taken = times[name] - (times[before[name]] if name in before else 0.0)
        fixed = {"figure": HOST, "implementation": Fused.name, "name": names.get(name, name)}
        yield case.fields() | fixed | timing(taken.tolist())


def _host_time(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call in a block; a GPU is not waited for until the clock has been read."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    taken = (time.perf_counter() - start) / CALLS
    wait_for(device)
    return taken
