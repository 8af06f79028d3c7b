"""Where the microseconds of one step go on the host.

Calls that each contain the one before are timed in turn, and a layer's time is the median over the
rounds of their difference. Most layers do the same whatever the sizes are: they are timed on one
sample and two rows, where a CPU's kernels, which the host waits for, do not drown them; one row
alone would have no gradient to check. The matrices of nn.Linear grow with the batch: they are timed
on the whole of it, against as many rows. What a CPU's kernels take is the operator's time at full
size beyond that on two rows. A GPU's kernels are not waited for: there the operator's time is that
of looking up and queueing them, and theirs is the replay of a CUDA graph.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.cases.sizes import Case
from benchmarks.implementations.fifo import Fused
from benchmarks.measuring import cuda, hardware
from benchmarks.measuring.clocks import in_blocks, interleaved, wait_for, wall_time
from benchmarks.measuring.run import Row, timing
from benchmarks.measuring.turns import copies_wanted, one_by_one
from rrd_kernels import FifoMemory, RRDLoss, functional
from rrd_kernels import validation as check

#: The official B and K.
SIZE, QUICK_SIZE = (64, 16384), (8, 32)
#: Widths of the published student's and teacher's features (resnet8x4, resnet32x4).
S_DIM, T_DIM, DIM = 64, 256, 128
#: Calls for each look at the clock, after one that warms the caches: so few that other work seldom
#: comes between.
BLOCK = 5
HOST = "host"
#: What the layer of the kernels' own time begins with, and the line of the whole step.
KERNELS, WHOLE = "kernels", "the whole step, measured for itself"
#: What the layers of the functional step begin with: what is beside the kernels without modules.
FUNCTIONAL = ("operator", "autograd", "Python: checks")
#: A layer is what the second call takes beyond the first, on one sample or on the batch.
ONE, BATCH, FULL = "one", "batch", "full"
LAYERS = (
    ("autograd: a node for the gradient", ONE, "operator", "autograd"),
    ("Python: checks and defaults", ONE, "autograd", "functional"),
    ("two nn.Linear: the embeddings", BATCH, "functional", "projected"),
    ("Python: modules", ONE, "projected", "module"),
    ("backward: engine, gradients of loss and nn.Linear", BATCH, "module", "step"),
)


class Calls:
    """A step of ``RRDLoss`` and the parts that it consists of, each containing the one before."""

    def __init__(self, batch: int, rows: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        widths: Any = {"s_dim": S_DIM, "t_dim": T_DIM, "feat_dim": DIM}
        self.criterion = RRDLoss(**widths, nce_k=rows, start="unit", backend="fused", device=device)
        self.criterion.warmup(batch)
        memory = self.criterion.memory
        assert isinstance(memory, FifoMemory)
        self.memory = memory
        self.state = (memory.queue, memory.queue_ptr)
        self.f_s = torch.randn(batch, S_DIM, generator=generator).to(device)
        self.f_t = torch.randn(batch, T_DIM, generator=generator).to(device)
        self.z_s, self.z_t = (z.detach() for z in memory.project(self.f_s, self.f_t))
        self.leaf = self.z_s.clone().requires_grad_()
        taus = (self.criterion.tau_s, self.criterion.tau_t)
        self.case = Case(batch, rows, "float32", DIM, *taus)
        self.settings = (*taus, True, None, check.REDUCTIONS.index("mean"), True, 0.0)

    def kernels(self) -> object:
        """All that is computed in forward, the gradient included, and no autograd."""
        forward = torch.ops.rrd_kernels.relational_step_forward_
        return forward(*self.state, self.z_s, self.z_t, *self.settings, True)

    def operator(self) -> object:
        """The step's operator where nothing wants a gradient."""
        step = torch.ops.rrd_kernels.relational_step_
        return step(*self.state, self.z_s, self.z_t, *self.settings)

    def autograd(self) -> object:
        step = torch.ops.rrd_kernels.relational_step_
        return step(*self.state, self.leaf, self.z_t, *self.settings)

    def functional(self) -> object:
        return self._functional(self.leaf, self.z_t)

    def projected(self) -> object:
        return self._functional(*self.memory.project(self.f_s, self.f_t))

    def module(self) -> torch.Tensor:
        return self.criterion(self.f_s, self.f_t)

    def step(self) -> None:
        self.module().backward()

    def _functional(self, z_s: torch.Tensor, z_t: torch.Tensor) -> object:
        case, step = self.case, functional.relational_step_
        taus: Any = {"tau_s": case.tau_s, "tau_t": case.tau_t}
        return step(z_s, z_t, *self.state, **taus, unit_memory=True, backend="fused")


def profile(device: torch.device, seconds: float, quick: bool = False) -> Iterator[Row]:
    """A row for each layer of a step, the whole of it last; at least seven rounds."""
    batch, rows = QUICK_SIZE if quick else SIZE
    first = Calls(batch, rows, device)
    memory_bytes = sum(tensor.nbytes for tensor in first.state)
    copies = copies_wanted(memory_bytes, hardware.cache_bytes(device))
    full = [first, *(Calls(batch, rows, device) for _ in range(copies - 1))]
    sized = {ONE: Calls(1, 2, device), BATCH: Calls(batch, batch, device)}
    names = {(size, name) for _, size, *both in LAYERS for name in both}
    if device.type == "cpu":
        names.add((ONE, "kernels"))
    timers = {
        (size, name): partial(_host_time, getattr(sized[size], name), device)
        for size, name in sorted(names)
    }
    for name in ("step", "kernels") if device.type == "cpu" else ("step",):
        call = one_by_one([getattr(calls, name) for calls in full])
        timers[FULL, name] = partial(wall_time, call, device)
    times = interleaved(timers, seconds)

    def beyond(size: str, lower: str, upper: str, of: str = "") -> list[float]:
        pairs = zip(times[size, upper], times[of or size, lower], strict=True)
        return [more - less for more, less in pairs]

    operator = "operator: dispatcher, allocations"
    if device.type == "cpu":
        layers = {KERNELS: beyond(FULL, "kernels", "kernels", of=ONE)}
        layers[operator] = times[ONE, "operator"]
    else:
        layers = {f"{KERNELS}, beside the host": _replayed(full, device)}
        layers[f"{operator}, launches"] = times[ONE, "operator"]
    layers |= {name: beyond(size, lower, upper) for name, size, lower, upper in LAYERS}
    layers[WHOLE] = times[FULL, "step"]
    for name, taken in layers.items():
        row = {"figure": HOST, "implementation": Fused.name, "name": name} | timing(taken)
        # Of the others no ceiling is known.
        bounded = name.startswith(KERNELS) or name == WHOLE
        yield first.case.fields() | ({} if bounded else {"operations": None, "bytes": None}) | row


def _host_time(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call in a block; a GPU is not waited for until the clock has been read."""
    call()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(BLOCK):
        call()
    taken = (time.perf_counter() - start) / BLOCK
    wait_for(device)
    return taken


def _replayed(full: list[Calls], device: torch.device) -> list[float]:
    """The kernels on the device, while the host goes on."""
    graph, _ = cuda.capture([calls.kernels for calls in full])
    timer = in_blocks(partial(cuda.device_time, graph.replay), device)
    return [taken / len(full) for taken in interleaved({"replay": timer}, 0.1)["replay"]]
