"""Collectives: gather rows or integers in rank order, reduce-scatter rows, copy from one rank.

Batches may be uneven: rows are padded to the largest batch on the way. Even batches need no
padding.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from rrd_kernels.distributed.ranks import Ranks

#: Up to this many ranks, a ring all-gather has no more rounds than a gather and a broadcast.
RING = 3


def gather_numbers(ranks: Ranks, device: torch.device, mine: list[int]) -> list[list[int]]:
    """Every rank's integers, the same number from each, in rank order; the host waits for them.

    On the CPU, more than :data:`RING` ranks gather on rank 0, which broadcasts: 1 + log2 W rounds.
    gloo's all-gather is a ring of W - 1 messages, one after the other.
    """
    where = ranks.device_for_numbers(device)
    numbers = torch.tensor(mine, dtype=torch.int64, device=where)
    heard = numbers.new_empty(ranks.count, len(mine))
    if where.type != "cpu" or ranks.count <= RING:
        dist.all_gather_into_tensor(heard.view(-1), numbers, group=ranks.group)
    else:
        rows = list(heard) if ranks.rank == 0 else None
        dist.gather(numbers, rows, group=ranks.group, group_dst=0)
        dist.broadcast(heard, group=ranks.group, group_src=0)
    return cast(list[list[int]], heard.tolist())


class Gathering:
    """An asynchronous all-gather of rows; :meth:`wait` returns them."""

    def __init__(self, ranks: Ranks, rows: Tensor, batches: Sequence[int]) -> None:
        self._batches, self._largest = batches, max(batches)
        self._like = rows
        padded = rows.detach().contiguous()
        if rows.shape[0] < self._largest:
            padded = rows.new_zeros((self._largest, *rows.shape[1:]))
            padded[: rows.shape[0]] = rows.detach()
        self._work = None
        if self._largest:
            # As bytes: every backend then sends every dtype, bit by bit.
            sent = padded.view(self._largest, -1).view(torch.uint8)
            self._received = sent.new_empty((len(batches) * self._largest, sent.shape[1]))
            self._work = dist.all_gather_into_tensor(
                self._received, sent, group=ranks.group, async_op=True
            )

    def wait(self) -> Tensor:
        """The rows of rank 0, then those of rank 1, and so on: [sum of batches, ...]."""
        if self._work is None:
            return self._like.detach()
        self._work.wait()
        rows = self._received.view(self._like.dtype).view(-1, *self._like.shape[1:])
        if min(self._batches) == self._largest:
            return rows
        parts = rows.split(self._largest)
        return torch.cat([part[:size] for part, size in zip(parts, self._batches, strict=True)])


def gather_rows(ranks: Ranks, rows: Tensor, batches: Sequence[int]) -> Gathering:
    """Starts to gather every rank's ``rows`` [batches[rank], ...] on every rank.

    Rows of any dtype; no gradient passes.
    """
    return Gathering(ranks, rows, batches)


def scatter_sums(ranks: Ranks, parts: Tensor, batches: Sequence[int]) -> Tensor:
    """Sums ``parts`` [sum(batches), N] over ranks; returns this rank's rows [batches[rank], N]."""
    largest = max(batches)
    padded = parts
    if min(batches) < largest:
        padded = parts.new_zeros(len(batches) * largest, parts.shape[1])
        pieces = zip(padded.split(largest), parts.split(list(batches)), strict=True)
        for place, piece in pieces:
            place[: len(piece)] = piece
    own = parts.new_empty(largest, parts.shape[1])
    dist.reduce_scatter_tensor(own, padded, group=ranks.group)
    return own[: batches[ranks.rank]]


def copy_from(ranks: Ranks, source: int, tensors: Iterable[Tensor]) -> None:
    """Copies the ``tensors`` of rank ``source`` into every rank's, in place."""
    for tensor in tensors:
        whole = tensor.contiguous()
        dist.broadcast(whole.view(-1).view(torch.uint8), group=ranks.group, group_src=source)
        if whole is not tensor:
            tensor.copy_(whole)
