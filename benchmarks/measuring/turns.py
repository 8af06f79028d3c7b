"""Calls in turn over several batches and several copies of a memory, more than a cache holds."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from benchmarks.cases.inputs import Batch
from benchmarks.implementations.step import Step

T = TypeVar("T")
S = TypeVar("S", bound=Step)

#: What all copies of one implementation's memory may take, whatever the cache.
MOST_BYTES = 1 << 30
#: Of memories so small that they are made for tests.
MOST_COPIES = 64


def copies_wanted(memory_bytes: int, cache_bytes: int | None) -> int:
    """So many that each is out of the cache when its turn comes again.

    A memory of twice the cache or more pushes itself out, and needs no other. Of smaller ones the
    others together fill the cache between two uses of one; a memory just larger than the cache
    may keep a part of itself there, where the cache does not evict strictly by age.

    Args:
        memory_bytes: of one copy; 0 of what has no memory.
        cache_bytes: of the device's last cache; ``None``, where the system does not say, counts as
            none.
    """
    if not cache_bytes or not memory_bytes or memory_bytes >= 2 * cache_bytes:
        return 1
    wanted = 1 + math.ceil(cache_bytes / memory_bytes)
    return max(1, min(wanted, MOST_COPIES, MOST_BYTES // memory_bytes))


def with_twins(step: S, cache_bytes: int | None) -> list[S]:
    """``step`` and as many others like it as make :func:`copies_wanted` of its memory."""
    count = copies_wanted(step.memory_bytes, cache_bytes)
    return [step, *(step.twin() for _ in range(count - 1))]


def turns(calls: Sequence[Callable[..., T]], batches: Sequence[Batch]) -> list[Callable[[], T]]:
    """Until calls and batches meet again as at first: each the next call, of the next batch."""
    period = math.lcm(len(calls), len(batches))
    pairs = zip(itertools.cycle(calls), itertools.cycle(batches), strict=False)
    return [partial(call, *batch) for call, batch in itertools.islice(pairs, period)]


def one_by_one(calls: Sequence[Callable[[], T]]) -> Callable[[], T]:
    """Each call makes the next of ``calls``, again and again."""
    following = itertools.cycle(calls)
    return lambda: next(following)()
