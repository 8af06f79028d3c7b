"""Time, bytes and memory of a training step on W ranks, as docs/scaling.md states them."""

import math
from typing import NamedTuple

from rrd_kernels.distributed.collectives import RING

GATHERS = ("none", "keys", "shard")


class Link(NamedTuple):
    """One way to send a collective's messages round a ring of ranks."""

    start: float  # seconds of a collective, however many ranks it has
    latency: float  # seconds from one rank to the next in its node
    bandwidth: float = math.inf  # bytes per second that a rank receives, in one node
    among_nodes: float = 0.0  # seconds from one rank to the next in its node, of several nodes
    network_latency: float = 0.0  # seconds from a node to the next
    network_bandwidth: float = math.inf  # bytes per second that enter a node


#: Rings of NCCL's protocols LL, LL128 and Simple, by the latencies and the shares of the bandwidth
#: with which it chooses between them on this generation (src/graph/tuning.cc of NCCL 2.19 and
#: later), over NVLink 4 (450 GB/s each way) and eight 400 Gb/s adapters to a node.
NCCL = (
    Link(6.6e-6, 0.6e-6, 87.7e9, 1.08e-6, 2.7e-6, 19e9),
    Link(14e-6, 1.9e-6, 0.92 * 450e9, 1.9e-6, 4e-6, 0.92 * 400e9),
    Link(8.4e-6, 3.4e-6, 450e9, 3.4e-6, 14e-6, 400e9),
)


class Machine(NamedTuple):
    """What ranks run on and what connects them, at rates of one rank. By default an H200 in a node
    of eight with bfloat16 products, of which this project has measured nothing."""

    name: str = "eight H200 to a node, bfloat16 (assumed)"
    step: float = 40e-6  # seconds that a step takes beside everything below
    flops: float = 395e12  # of products, per second: half of what a large torch.mm reaches
    links: tuple[Link, ...] = NCCL  # of which a collective takes the fastest
    read: float = 4.3e12  # bytes of the memory's rows, per second: a copy's rate
    agree: float = 200e-6  # seconds of Python and an enqueue with several ranks: a guess
    round: float = 50e-6  # seconds of a message between two hosts' processes, as of TCP
    each: float = 10e-6  # seconds of one rank's message among those that one rank gathers
    per_node: int = 8
    cores: float = math.inf  # ranks that run side by side at these rates


class Step(NamedTuple):
    """A training step of W ranks with a FIFO memory."""

    gather: str
    ranks: int
    size: int  # rows K of the whole memory
    batch: int  # B of each rank
    dim: int = 128
    element: int = 4  # bytes of an embedding's number, and of a stored one

    @property
    def messages(self) -> tuple[int, ...]:
        """Bytes that each rank brings to each collective after the header."""
        rows = self.batch * self.dim * self.element
        sums = self.batch * (2 * self.dim + 3) * 4
        return {"none": (), "keys": (rows,), "shard": (2 * rows, sums)}[self.gather]


def collective(machine: Machine, ranks: int, each: float) -> float:
    """Seconds to gather ``each`` bytes from every of several ranks, or to sum and scatter them."""
    nodes = -(-ranks // machine.per_node)

    def around(link: Link) -> float:
        hops, bandwidth = (ranks - 1) * link.latency, link.bandwidth
        if nodes > 1:
            hops = (ranks - nodes) * link.among_nodes + (nodes - 1) * link.network_latency
            bandwidth = min(bandwidth, link.network_bandwidth)
        return link.start + hops + (ranks - 1) * each / bandwidth

    return min(map(around, machine.links))


def header(machine: Machine, ranks: int) -> float:
    """Seconds in which the hosts of several ranks tell each other what they bring to a step."""
    if ranks <= RING:
        return machine.agree + (ranks - 1) * machine.round
    rounds = 1 + math.ceil(math.log2(ranks))
    return machine.agree + rounds * machine.round + (ranks - 1) * machine.each


def parts(machine: Machine, step: Step) -> tuple[float, float, float]:
    """Seconds of a step's computing, of its header, and of all other messages."""
    shares = step.ranks if step.gather == "shard" else 1
    numbers = step.dim * -(-step.size // shares)  # that a rank holds
    products, read = 8 * step.batch * shares * numbers, numbers * step.element
    computing = machine.step + max(products / machine.flops, read / machine.read)
    messages = step.messages if step.ranks > 1 else ()
    agreeing = header(machine, step.ranks) if messages else 0.0
    talking = sum(collective(machine, step.ranks, each) for each in messages)
    slower = max(1.0, step.ranks / machine.cores)
    return slower * computing, slower * agreeing, slower * talking
