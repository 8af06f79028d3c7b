"""Where the microseconds of one step go on the host, beside which a GPU's kernels run.

Calls that each contain the one before are timed in turn, and a layer's time is the median over the
rounds of their difference: on one sample and two rows, where the kernels do not drown them. The
larger matrices of nn.Linear are in none of the layers.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import Fused
from benchmarks.measuring.clocks import interleaved, wait_for
from benchmarks.measuring.run import Row, timing
from rrd_kernels import RRDLoss, functional
from rrd_kernels import validation as check

CASE = Case(1, 2, "float32")
#: Widths of the published student's and teacher's features (resnet8x4, resnet32x4).
S_DIM, T_DIM = 64, 256
#: For each look at the clock: so few that other work seldom comes between.
CALLS = 5
HOST = "host"


def layers(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Calls of which each contains the one before, by what each has beyond it; the last is a step
    of ``RRDLoss``."""
    widths: Any = {"s_dim": S_DIM, "t_dim": T_DIM, "feat_dim": CASE.dim}
    criterion = RRDLoss(**widths, nce_k=CASE.rows, start="unit", backend="fused", device=device)
    criterion.warmup(CASE.batch)
    memory: Any = criterion.memory
    state = (memory.queue, memory.queue_ptr)
    features = [torch.randn(CASE.batch, width, device=device) for width in (S_DIM, T_DIM)]
    z_s, z_t = (z.detach() for z in memory.project(*features))
    leaf = z_s.clone().requires_grad_()
    taus: Any = {"tau_s": criterion.tau_s, "tau_t": criterion.tau_t}
    settings = (*taus.values(), True, None, check.REDUCTIONS.index("mean"), True, 0.0)
    operator: Any = torch.ops.rrd_kernels.relational_step_
    step: Any = partial(functional.relational_step_, unit_memory=True, backend="fused", **taus)
    return {
        "operator: dispatcher, launches": lambda: operator(*state, z_s, z_t, *settings),
        "autograd: a node for the gradient": lambda: operator(*state, leaf, z_t, *settings),
        "Python: checks and defaults": lambda: step(leaf, z_t, *state),
        "two nn.Linear: the embeddings": lambda: step(*memory.project(*features), *state),
        "Python: modules": lambda: criterion(*features),
        "backward: engine, all gradients": lambda: criterion(*features).backward(),
    }


def profile(device: torch.device, seconds: float) -> Iterator[Row]:
    """A row for each layer; at least seven rounds."""
    timers = {name: partial(_host_time, call, device) for name, call in layers(device).items()}
    below = np.zeros(1)
    for name, taken in interleaved(timers, seconds).items():
        fixed = {"figure": HOST, "implementation": Fused.name, "name": name}
        yield CASE.fields() | fixed | timing((np.array(taken) - below).tolist())
        below = np.array(taken)


def _host_time(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call in a block; a GPU is not waited for until the clock has been read."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    taken = (time.perf_counter() - start) / CALLS
    wait_for(device)
    return taken
