"""The time, the bytes and the memory of a training step on W ranks, as docs/scaling.md has them."""

import math
from typing import NamedTuple

GATHERS = ("none", "keys", "shard")

#: Six integers that every rank tells the others before a step.
HEADER_BYTES = 48


class Machine(NamedTuple):
    """What ranks run on and what connects them; all rates are those of one rank."""

    name: str
    step: float  # seconds that a step takes beside everything below
    flops: float  # of the attention's products, per second
    latency: float  # seconds of one message between ranks of a node
    bandwidth: float  # bytes per second that a rank receives from its node
    read: float = math.inf  # bytes of the memory's rows, per second
    per_node: int = 1 << 30
    network_latency: float = 0.0  # the same between nodes
    network_bandwidth: float = math.inf
    capacity: float = math.inf  # bytes that a rank can spare for the memory
    cores: float = math.inf  # ranks that run side by side at these rates
    ring: bool = False  # W - 1 messages one after the other, in place of log2 W


class Step(NamedTuple):
    """A training step of W ranks with a FIFO memory."""

    gather: str
    ranks: int
    size: int  # rows K of the whole memory
    batch: int  # B of each rank
    dim: int = 128
    element: int = 4  # bytes of an embedding's number, and of a stored one

    @property
    def sent(self) -> int:
        """Bytes of all ranks' messages together."""
        if self.ranks == 1 or self.gather == "none":
            return 0
        header = self.ranks * HEADER_BYTES
        rows = self.ranks * self.batch
        if self.gather == "keys":
            return header + rows * self.dim * self.element
        return header + rows * (2 * self.dim * self.element + (2 * self.dim + 3) * 4)

    @property
    def held(self) -> int:
        """Bytes of the memory on a rank."""
        rows = -(-self.size // self.ranks) if self.gather == "shard" else self.size
        return rows * self.dim * self.element

    @property
    def possible(self) -> bool:
        """Whether the rows that enter at once fit the memory."""
        return self.size >= self.batch * (1 if self.gather == "none" else self.ranks)


def collective(machine: Machine, ranks: int, each: float) -> float:
    """Seconds to gather ``each`` bytes from every rank, or to add up and hand back as many."""
    if ranks == 1:
        return 0.0
    inside = min(ranks, machine.per_node)
    nodes = -(-ranks // machine.per_node)
    if machine.ring:
        waits = (ranks - 1) * machine.latency
    else:
        waits = math.ceil(math.log2(inside)) * machine.latency
        waits += math.ceil(math.log2(nodes)) * machine.network_latency
    slowest = machine.bandwidth
    if nodes > 1:
        slowest = min(slowest, machine.network_bandwidth)
    return waits + (ranks - 1) * each / slowest


def attention(machine: Machine, queries: int, rows: int, step: Step) -> float:
    """Seconds of the pass over ``rows`` rows: loss and gradient of ``queries`` samples."""
    products = 8 * queries * step.dim * rows / machine.flops
    return max(products, rows * step.dim * step.element / machine.read)


def parts(machine: Machine, step: Step) -> tuple[float, float]:
    """Seconds of a step's computing, and of its communication."""
    batch, ranks = step.batch, step.ranks
    slower = max(1.0, ranks / machine.cores)
    shares = ranks if step.gather == "shard" else 1
    rows = -(-step.size // shares)
    computing = machine.step + attention(machine, shares * batch, rows, step)
    talking = 0.0
    if step.gather != "none":
        talking = collective(machine, ranks, HEADER_BYTES)
        embeddings = 2 if step.gather == "shard" else 1
        talking += collective(machine, ranks, embeddings * batch * step.dim * step.element)
    if step.gather == "shard":
        talking += collective(machine, ranks, batch * (2 * step.dim + 3) * 4)
    return slower * computing, slower * talking


def seconds(machine: Machine, step: Step) -> float:
    """Of a whole step."""
    return sum(parts(machine, step))


#: Of a device's memory, what a memory of embeddings may take beside a student that trains.
SPARED = 1 / 3

#: An H200 in a node of eight, bfloat16 products. Nothing of it has been measured by this project.
#: flops: half of what a large torch.mm reaches elsewhere (790 TFLOP/s); read: a copy's rate (4.3
#: TB/s); within a node NVLink 4 (450 GB/s each way), between nodes one 400 Gb/s adapter a GPU;
#: latencies as NCCL's collectives commonly have them. capacity: of its 141 GB.
H200 = Machine(
    name="eight H200 to a node, bfloat16 (assumed)",
    step=40e-6,
    flops=395e12,
    latency=6e-6,
    bandwidth=450e9,
    read=4.3e12,
    per_node=8,
    network_latency=15e-6,
    network_bandwidth=50e9,
    capacity=SPARED * 141e9,
)
