"""Where the microseconds of one step go on the host.

Calls that each contain the one before are timed in turn, and a layer's time is the median over the
rounds of their difference: on one sample and two rows (one row alone would have no gradient to
check), where the kernels do not drown them. What a CPU's kernels take is their time at full size
beyond the operator's on two rows; a GPU's run beside the host, and are timed in a CUDA graph.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import Fused
from benchmarks.measuring import cuda, hardware
from benchmarks.measuring.clocks import in_blocks, interleaved, wall_time
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
    "operator": "operator: dispatcher, allocations, launches",
    "autograd": "autograd: a node for the gradient",
    "functional": "Python: checks and defaults",
    "projected": "two nn.Linear: the embeddings",
    "module": "Python: modules",
    "step": "backward: engine, gradients of loss and nn.Linear",
}


class Calls:
    """A step of ``RRDLoss`` and the parts that it consists of, each containing the one before."""

    def __init__(self, batch: int, rows: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        widths: Any = {"s_dim": S_DIM, "t_dim": T_DIM, "feat_dim": DIM}
        self.criterion = RRDLoss(**widths, nce_k=rows, start="unit", backend="fused", device=device)
        self.criterion.warmup(batch)
        self.memory: Any = self.criterion.memory
        self.state = (self.memory.queue, self.memory.queue_ptr)
        self.features = [
            torch.randn(batch, width, generator=generator).to(device) for width in (S_DIM, T_DIM)
        ]
        self.z_s, self.z_t = (z.detach() for z in self.memory.project(*self.features))
        self.leaf = self.z_s.clone().requires_grad_()
        self.taus: Any = {"tau_s": self.criterion.tau_s, "tau_t": self.criterion.tau_t}
        self.case = Case(batch, rows, "float32", DIM, **self.taus)
        mean = check.REDUCTIONS.index("mean")
        self.settings = (*self.taus.values(), True, None, mean, True, 0.0)

    def kernels(self) -> object:
        """All that is computed in forward, the gradient included, and no autograd."""
        forward = torch.ops.rrd_kernels.relational_step_forward_
        return forward(*self.state, self.z_s, self.z_t, *self.settings, True)

    def operator(self) -> object:
        """The step's operator where nothing wants a gradient."""
        return self._operator(self.z_s)

    def autograd(self) -> object:
        return self._operator(self.leaf)

    def functional(self) -> object:
        return self._functional(self.leaf, self.z_t)

    def projected(self) -> object:
        return self._functional(*self.memory.project(*self.features))

    def module(self) -> torch.Tensor:
        return self.criterion(*self.features)

    def step(self) -> None:
        self.module().backward()

    def _operator(self, z_s: torch.Tensor) -> object:
        step = torch.ops.rrd_kernels.relational_step_
        return step(*self.state, z_s, self.z_t, *self.settings)

    def _functional(self, z_s: torch.Tensor, z_t: torch.Tensor) -> object:
        step = functional.relational_step_
        return step(z_s, z_t, *self.state, **self.taus, unit_memory=True, backend="fused")


def profile(device: torch.device, seconds: float, quick: bool = False) -> Iterator[Row]:
    """A row for each layer of a step, the whole of it last; at least seven rounds."""
    batch, rows = QUICK_SIZE if quick else SIZE
    copies = copies_wanted(4 * rows * DIM, hardware.cache_bytes(device))
    full = [Calls(batch, rows, device) for _ in range(copies)]
    one = Calls(1, 2, device)
    timers = {name: partial(wall_time, getattr(one, name), device, CALLS) for name in LAYERS}
    steps, kernels = (
        one_by_one([getattr(calls, name) for calls in full]) for name in ("step", "kernels")
    )
    timers |= {WHOLE: partial(wall_time, steps, device)}
    if device.type == "cpu":
        timers |= {KERNELS: partial(wall_time, kernels, device)}
    times = interleaved(timers, seconds)
    layers = {}
    if device.type == "cpu":
        layers[KERNELS] = _beyond(times["operator"], times[KERNELS])
    else:
        layers[f"{KERNELS}, beside the host"] = _replayed(full, device)
    below = [0.0] * len(times[WHOLE])
    for name, layer in LAYERS.items():
        layers[layer] = _beyond(below, times[name])
        below = times[name]
    layers[WHOLE] = times[WHOLE]
    for name, taken in layers.items():
        row = {"figure": HOST, "implementation": Fused.name, "name": name} | timing(taken)
        # Of the others no ceiling is known.
        bounded = name.startswith(KERNELS) or name == WHOLE
        yield full[0].case.fields() | ({} if bounded else {"operations": None, "bytes": None}) | row


def _beyond(below: list[float], times: list[float]) -> list[float]:
    return [more - less for less, more in zip(below, times, strict=True)]


def _replayed(full: list[Calls], device: torch.device) -> list[float]:
    """The kernels on the device, while the host goes on."""
    graph, _ = cuda.capture([calls.kernels for calls in full])
    timer = in_blocks(partial(cuda.device_time, graph.replay), device)
    return [taken / len(full) for taken in interleaved({"replay": timer}, 0.1)["replay"]]
