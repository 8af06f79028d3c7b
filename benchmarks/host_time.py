"""Where the microseconds of one step go on the host.

Calls that each contain the one before are timed in turn, and a layer's time is the median over the
rounds of their difference. Most layers do the same whatever the sizes are: they are timed on one
sample and two rows, where a CPU's kernels, which the host waits for, do not drown them; one row
alone would have no gradient to check. The matrices of nn.Linear grow with the batch: they are timed
on the whole of it, against as many rows. What a CPU's kernels take is the operator's time at full
size beyond that on two rows. A GPU's kernels are not waited for: there the operator's time is that
of looking up and queueing them, of which the profiler tells the driver's part, and theirs is the
replay of a CUDA graph.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import cuda, hardware
from benchmarks.agreement import FifoAgreement
from benchmarks.cases import Case
from benchmarks.measure import Spread, calls_in_a_block, interleaved, profiler, wait_for, wall_time
from benchmarks.turns import copies_wanted, one_by_one
from rrd_kernels import FifoMemory, RRDLoss, functional
from rrd_kernels import validation as check

#: Widths of the published student's and teacher's features (resnet8x4, resnet32x4).
S_DIM, T_DIM, DIM = 64, 256, 128
#: Calls for each look at the clock, after one that warms the caches: so few that other work seldom
#: comes between.
BLOCK = 5
#: Operators in a profile.
PROFILED = 50
#: What the layer of the kernels' own time begins with.
KERNELS = "kernels"
#: What the layers of the functional step begin with: what is beside the kernels without modules.
FUNCTIONAL = ("operator", "autograd", "Python: checks")
#: What the driver's and the runtime's launches are called in a profile.
LAUNCH = re.compile(r"^(cu|cuda|hip)\w*Launch\w*Kernel")


@dataclass(frozen=True)
class Layer:
    """Part of a step."""

    name: str
    #: A difference of two times, which may come out negative by chance.
    seconds: Spread


@dataclass(frozen=True)
class HostProfile:
    """Of one training step of ``RRDLoss`` and its backward."""

    batch: int
    rows: int
    layers: list[Layer]
    #: The whole step, measured for itself.
    step: Spread
    #: Of the operator, in the driver's launches; ``None`` on a CPU, or where a profile has none.
    launches: int | None = None
    launch_seconds: float | None = None


class Calls:
    """A step and the parts that it consists of, each containing the one before."""

    def __init__(self, batch: int, rows: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.criterion = RRDLoss(
            s_dim=S_DIM,
            t_dim=T_DIM,
            feat_dim=DIM,
            nce_k=rows,
            start="unit",
            backend="fused",
            device=device,
        )
        self.criterion.warmup(batch)
        memory = self.criterion.memory
        assert isinstance(memory, FifoMemory)
        self.memory = memory
        self.state = (memory.queue, memory.queue_ptr)
        self.f_s = torch.randn(batch, S_DIM, generator=generator).to(device)
        self.f_t = torch.randn(batch, T_DIM, generator=generator).to(device)
        self.z_s, self.z_t = (z.detach() for z in self.memory.project(self.f_s, self.f_t))
        self.leaf = self.z_s.clone().requires_grad_()
        taus = (self.criterion.tau_s, self.criterion.tau_t)
        self.settings = (*taus, True, None, check.REDUCTIONS.index("mean"), True, 0.0)

    def check(self) -> None:
        """Each call once, on the memory as it is, which is put back.

        Raises:
            ArithmeticError: a loss, a gradient or what is written is not the reference's.
        """
        before = tuple(tensor.clone() for tensor in self.state)
        taus = (self.criterion.tau_s, self.criterion.tau_t)
        case = Case(len(self.f_s), len(self.memory.queue), "float32", DIM, *taus)
        judge = FifoAgreement(case, before, (self.z_s, self.z_t))
        for name in ("kernels", "operator", "autograd", "functional", "projected", "module"):
            judge.check_result(name, *self._result(name), self.state)
            for tensor, value in zip(self.state, before, strict=True):
                tensor.copy_(value)

    def _result(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of that call, and the gradient with respect to z_s where there is one."""
        embeddings = [self.leaf]

        def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            output.retain_grad()
            embeddings.append(output)

        hook = self.criterion.embed_s.register_forward_hook(keep)
        try:
            found: Any = getattr(self, name)()
        finally:
            hook.remove()
        if name == "kernels":
            return found
        if found.requires_grad:
            found.backward()
        gradient, self.leaf.grad = embeddings[-1].grad, None
        return found.detach(), gradient

    def kernels(self) -> object:
        """All that is computed in forward, the gradient included, and no autograd."""
        forward = torch.ops.rrd_kernels.relational_step_forward_
        return forward(*self.state, self.z_s, self.z_t, *self.settings, True)

    def operator(self) -> object:
        """The step's operator where nothing wants a gradient."""
        return torch.ops.rrd_kernels.relational_step_(
            *self.state, self.z_s, self.z_t, *self.settings
        )

    def autograd(self) -> object:
        return torch.ops.rrd_kernels.relational_step_(
            *self.state, self.leaf, self.z_t, *self.settings
        )

    def functional(self) -> object:
        return self._functional(self.leaf, self.z_t)

    def projected(self) -> object:
        return self._functional(*self.memory.project(self.f_s, self.f_t))

    def module(self) -> torch.Tensor:
        return self.criterion(self.f_s, self.f_t)

    def step(self) -> None:
        self.module().backward()

    def _functional(self, z_s: torch.Tensor, z_t: torch.Tensor) -> object:
        return functional.relational_step_(
            z_s,
            z_t,
            *self.state,
            tau_s=self.criterion.tau_s,
            tau_t=self.criterion.tau_t,
            unit_memory=True,
            backend="fused",
        )


#: A layer is what the second call takes beyond the first, on one sample or on the batch.
ONE, BATCH = "one", "batch"
LAYERS = (
    ("autograd: a node for the gradient", ONE, "operator", "autograd"),
    ("Python: checks and defaults", ONE, "autograd", "functional"),
    ("two nn.Linear: the embeddings", BATCH, "functional", "projected"),
    ("Python: modules", ONE, "projected", "module"),
    ("backward: engine, gradients of loss and nn.Linear", BATCH, "module", "step"),
)


def profile(batch: int, rows: int, device: torch.device, seconds: float) -> HostProfile:
    """The layers of a step of ``batch`` samples against ``rows`` rows; at least seven rounds.

    Each call has agreed with the reference before.

    Args:
        batch, rows: B and K.
        device: where; the fused kernels run there.
        seconds: how long to time.
    """
    first = Calls(batch, rows, device)
    memory_bytes = sum(tensor.nbytes for tensor in first.state)
    copies = copies_wanted(memory_bytes, hardware.cache_bytes(device))
    full = [first, *(Calls(batch, rows, device) for _ in range(copies - 1))]
    sized = {ONE: Calls(1, 2, device), BATCH: Calls(batch, batch, device)}
    for calls in (*full, *sized.values()):
        calls.check()
    timers = {
        (size, name): partial(_host_time, getattr(sized[size], name), device)
        for _, size, *names in LAYERS
        for name in names
    }
    timers["full", "step"] = partial(wall_time, one_by_one([c.step for c in full]), device)
    kernels_in_turn = one_by_one([calls.kernels for calls in full])
    if device.type == "cpu":
        timers["full", "kernels"] = partial(wall_time, kernels_in_turn, device)
        timers[ONE, "kernels"] = partial(_host_time, sized[ONE].kernels, device)
    times = interleaved(timers, seconds)

    def layer(name: str, upper: tuple[str, str], lower: tuple[str, str] | None = None) -> Layer:
        less = times[lower] if lower else [0.0] * len(times[upper])
        return Layer(name, Spread.of([a - b for a, b in zip(times[upper], less, strict=True)]))

    step = layer("the whole step", ("full", "step")).seconds
    above = [layer(name, (size, upper), (size, lower)) for name, size, lower, upper in LAYERS]
    if device.type == "cpu":
        kernels = layer(KERNELS, ("full", "kernels"), (ONE, "kernels"))
        operator = layer("operator: dispatcher, allocations", (ONE, "operator"))
        return HostProfile(batch, rows, [kernels, operator, *above], step)
    operator = layer("operator: dispatcher, allocations, launches", (ONE, "operator"))
    layers = [_kernels(full), operator, *above]
    return HostProfile(batch, rows, layers, step, *_launches(first.kernels, device))


def _host_time(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call in a block; a GPU is not waited for until the clock has been read."""
    call()
    if device.type == "cpu":
        return wall_time(call, device, BLOCK)
    wait_for(device)
    start = time.perf_counter()
    for _ in range(BLOCK):
        call()
    taken = (time.perf_counter() - start) / BLOCK
    wait_for(device)
    return taken


def _kernels(full: Sequence[Calls]) -> Layer:
    """On the device, while the host goes on."""
    graph, _ = cuda.capture([calls.kernels for calls in full])
    timer = partial(cuda.device_time, graph.replay)
    times = interleaved({"replay": partial(timer, calls_in_a_block(timer))}, 0.1)
    each = [taken / len(full) for taken in times["replay"]]
    return Layer(f"{KERNELS}, beside the host", Spread.of(each))


def _launches(
    call: Callable[[], object], device: torch.device
) -> tuple[int, float] | tuple[None, None]:
    """How many a call makes, and the seconds that the driver takes for them, if it can be seen."""
    with profiler(device) as profiled:
        for _ in range(PROFILED):
            call()
        wait_for(device)
    launches = [event for event in profiled.key_averages() if LAUNCH.match(event.key)]
    if not launches:
        return None, None
    count = sum(event.count for event in launches)
    microseconds = sum(event.self_cpu_time_total for event in launches)
    return round(count / PROFILED), microseconds / 1e6 / PROFILED
