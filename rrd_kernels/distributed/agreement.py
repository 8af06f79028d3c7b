"""Before a step's rows move, every rank learns what every rank brings, or that one cannot go on.

A rank that raised by itself would leave the others waiting for it until the group's timeout. So its
error travels in the place of its sizes, and every rank raises.
"""

import hashlib
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rrd_kernels.distributed.collectives import gather_numbers
from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings


class Standing(IntEnum):
    """Of a rank's memory beside the other ranks'."""

    ALIKE = 0
    #: It was made, or loaded, since they were compared.
    STALE = 1
    #: A step that was to write it did not end here.
    UNFINISHED = 2


class Share(NamedTuple):
    """What one rank brings to a step."""

    batch: int
    alike: Mapping[str, Any]  # settings and shapes that must be the same on every rank
    needs_grad: bool = False
    standing: Standing = Standing.ALIKE
    unit_memory: bool = False  # whether it may promise that no row is longer than 1


class Step(NamedTuple):
    """What all ranks bring together."""

    batches: list[int]  # of each rank, in their order
    needs_grad: bool  # of any
    standings: list[int]  # of each rank
    unit_memory: bool  # of all

    @property
    def batch(self) -> int:
        """The samples of all ranks."""
        return sum(self.batches)

    @property
    def stale(self) -> bool:
        """Whether some ranks' memories may be others than the rest's."""
        return any(self.standings)

    @property
    def source(self) -> int:
        """The rank whose memory is that of all: the first that ended what it had begun."""
        whole = [standing != Standing.UNFINISHED for standing in self.standings]
        return whole.index(True) if any(whole) else 0

    def weighted(self, loss: Tensor, rank: int) -> Tensor:
        """A rank's mean, so that the mean over ranks, which is what DDP takes of the gradients, is
        that over all samples."""
        if len(set(self.batches)) == 1:
            return loss
        return loss * (self.batches[rank] * len(self.batches) / self.batch)


def agree(ranks: Ranks, device: torch.device, share: Callable[[], Share]) -> Step:
    """Looks at this rank's share of a step and exchanges it with the others.

    Args:
        ranks: who takes part; all of them must call this.
        device: of the rows.
        share: makes this rank's share, checking its input; what it raises, every rank hears of.

    Raises:
        RuntimeError: another rank's ``share`` raised; its message is in this one.
        ValueError: ranks bring what must be alike and is not. Names the ranks and the values.
        Exception: what ``share`` itself raised here.
    """
    mine, error = None, None
    try:
        mine = share()
    except Exception as raised:
        error = raised
    said = [0, 0, 0, 0, 0, 0]
    if mine is not None:
        said = [1, mine.batch, _digest(mine.alike)]
        said += [int(flag) for flag in (mine.needs_grad, mine.standing, mine.unit_memory)]
    heard = gather_numbers(ranks, device, said)
    if not all(row[0] for row in heard) or len({row[2] for row in heard}) > 1:
        _explain(ranks, mine, error)
    return Step(
        batches=[row[1] for row in heard],
        needs_grad=any(row[3] for row in heard),
        standings=[row[4] for row in heard],
        unit_memory=all(row[5] for row in heard),
    )


def _digest(alike: Mapping[str, Any]) -> int:
    """The same 63 bits for the same settings, in every process."""
    text = repr(sorted(alike.items())).encode()
    return _whole(hashlib.blake2b(text, digest_size=8).digest())


def _whole(digest: bytes) -> int:
    return int.from_bytes(digest, "little") >> 1


def check_projections(ranks: Ranks, device: torch.device, memory: Embeddings) -> None:
    """The projections are the same on all ranks, bit by bit: no gradient aligns the teacher's, and
    gradients that are averaged keep the student's as they were.

    All ranks must call this; it waits for the device. Where a rank has only a part of the weights,
    nothing is compared.

    Raises:
        ValueError: one is not, on all ranks.
    """
    names = ("embed_s", "embed_t")
    heard = gather_numbers(ranks, device, [_digest_of(getattr(memory, name)) for name in names])
    for name, numbers in zip(names, zip(*heard, strict=True), strict=True):
        found: dict[int, list[int]] = {}
        for rank, number in enumerate(numbers):
            found.setdefault(number, []).append(rank)
        if len(found) > 1:
            alike = " and ".join(f"ranks {where}" for where in found.values())
            raise ValueError(
                f"ranks that share a memory must have the same {name}; it is one on {alike} each: "
                f"seed the ranks alike, load the same state, or use DDP(criterion)"
            )


def _digest_of(module: nn.Module) -> int:
    """Of the module's state, where that is whole here."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        if type(value) is not Tensor:  # a DTensor
            return 0
        numbers = value.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + numbers.tobytes())
    return _whole(digest.digest())


def _explain(ranks: Ranks, mine: Share | None, error: Exception | None) -> None:
    """Raises, on every rank, an error that says what was wrong where."""
    text = None if error is None else f"{type(error).__name__}: {error}"
    reports: list[Any] = [None] * ranks.size
    alike = {} if mine is None else dict(mine.alike)
    dist.all_gather_object(reports, (text, alike), group=ranks.group)
    if error is not None:
        raise error
    failed = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(reports) if text is not None]
    if failed:
        raise RuntimeError(f"other ranks refused their input ({'; '.join(failed)})")
    different = []
    for name in sorted({name for _, alike in reports for name in alike}):
        values: dict[str, list[int]] = {}
        for rank, (_, alike) in enumerate(reports):
            values.setdefault(repr(alike.get(name)), []).append(rank)
        if len(values) > 1:
            each = ", ".join(f"{value} on ranks {where}" for value, where in values.items())
            different.append(f"{name} is {each}")
    raise ValueError(f"ranks that share a memory must agree: {'; '.join(different)}")
