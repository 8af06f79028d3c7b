"""Before a step, ranks exchange batch sizes and settings, or learn that one of them has failed.

A rank that raised alone would leave the others waiting until the group's timeout. So it reports the
failure in place of its sizes, and every rank raises.
"""

import hashlib
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rrd_kernels import transforms
from rrd_kernels.distributed.collectives import gather_numbers
from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.embeddings import Embeddings


class Standing(IntEnum):
    """How a rank's memory stands to the other ranks' memories."""

    ALIKE = 0
    #: Constructed or loaded since the ranks last compared memories.
    STALE = 1
    #: A step that writes it has begun on this rank and not ended.
    UNFINISHED = 2


class Share(NamedTuple):
    """One rank's part of a step."""

    batch: int
    alike: Mapping[str, Any]  # settings and shapes that must be the same on every rank
    needs_grad: bool = False
    standing: Standing = Standing.ALIKE
    unit_memory: bool = False  # its promise that no row of its memory is longer than 1


class Step(NamedTuple):
    """The shares of all ranks, combined."""

    batches: list[int]  # of each rank, in rank order
    needs_grad: bool  # whether any rank needs a gradient
    standings: list[int]  # of each rank, in rank order
    unit_memory: bool  # whether all ranks promise it

    @property
    def batch(self) -> int:
        """Number of samples on all ranks together."""
        return sum(self.batches)

    @property
    def stale(self) -> bool:
        """Whether the memories may differ between ranks."""
        return any(self.standings)

    @property
    def source(self) -> int:
        """The rank whose memory all others copy: the first without an unfinished step, or 0."""
        whole = [standing != Standing.UNFINISHED for standing in self.standings]
        return whole.index(True) if any(whole) else 0

    def weighted(self, loss: Tensor, rank: int) -> Tensor:
        """A rank's mean loss, weighted by its share of the samples. DDP averages gradients over
        ranks; with this weight their average is the mean over all samples."""
        if len(set(self.batches)) == 1:
            return loss
        return loss * (self.batches[rank] * len(self.batches) / self.batch)


def agree(ranks: Ranks, device: torch.device, share: Callable[[], Share]) -> Step:
    """Makes this rank's share of a step and exchanges it with the other ranks.

    Args:
        ranks: who takes part; all of them must call this.
        device: of the memory's rows.
        share: checks this rank's input and makes its share; if it raises, every rank raises.

    Raises:
        RuntimeError: another rank's ``share`` raised; its message is in this one.
        ValueError: a setting or shape differs between ranks. Names the ranks and the values.
        Exception: whatever ``share`` raised on this rank.
    """
    mine, error = None, None
    if transforms.are_running():  # not said to the others: what is sent would be wrapped too
        raise RuntimeError(
            f"torch.func and forward-mode derivatives work in one process only; {ranks.count} "
            f"ranks share this memory"
        )
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
    """A 63-bit hash of the settings, the same in every process."""
    text = repr(sorted(alike.items())).encode()
    return _whole(hashlib.blake2b(text, digest_size=8).digest())


def _whole(digest: bytes) -> int:
    return int.from_bytes(digest, "little") >> 1


def check_projections(ranks: Ranks, device: torch.device, memory: Embeddings) -> None:
    """Checks that both projections have the same bits on all ranks. Training never aligns them:
    averaged gradients keep a difference, and where there are none it stays.

    All ranks must call this; it waits for the device. A projection of which a rank holds only a
    part (a DTensor) is not compared.

    Raises:
        ValueError: a projection differs between ranks; raised on all ranks.
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
                f"ranks that share a memory must have the same {name}; it differs between {alike}: "
                f"seed the ranks alike, load the same state, or use DDP(criterion)"
            )


def _digest_of(module: nn.Module) -> int:
    """Hash of the module's state; 0 if this rank holds only a part of it."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        if type(value) is not Tensor:  # a DTensor
            return 0
        numbers = value.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + numbers.tobytes())
    return _whole(digest.digest())


def _explain(ranks: Ranks, mine: Share | None, error: Exception | None) -> None:
    """Raises, on every rank, an error that names the ranks and what was wrong on each."""
    text = None if error is None else f"{type(error).__name__}: {error}"
    reports: list[Any] = [None] * ranks.count
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
