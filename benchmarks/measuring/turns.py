"""Calls in turn over several batches and several copies of a memory, more than a cache holds."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.cases.inputs import Batch

#: Of memories so small that they are made for tests.
MOST_COPIES = 64


def copies_wanted(memory_bytes: int, cache_bytes: int | None) -> int:
    """So many of a memory that each is out of the cache when its turn comes again: the others fill
    the cache. One of twice the cache pushes itself out; of one just larger than it a part might
    stay. ``cache_bytes`` is ``None`` where the system does not say."""
    if not cache_bytes or memory_bytes >= 2 * cache_bytes:
        return 1
    return min(MOST_COPIES, 1 + math.ceil(cache_bytes / memory_bytes))


def with_twins(step: Any, cache_bytes: int | None) -> list[Any]:
    """``step`` and as many others like it as make :func:`copies_wanted` of its state."""
    count = copies_wanted(sum(tensor.nbytes for tensor in step.state), cache_bytes)
    return [step, *(step.twin() for _ in range(count - 1))]


def turns(calls: Sequence[Callable[..., Any]], batches: Sequence[Batch]) -> list[Callable[[], Any]]:
    """Until calls and batches meet again as at first: each the next call, of the next batch."""
    period = math.lcm(len(calls), len(batches))
    pairs = zip(itertools.cycle(calls), itertools.cycle(batches), strict=False)
    return [partial(call, *batch) for call, batch in itertools.islice(pairs, period)]


def one_by_one(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Each call makes the next of ``calls``, again and again."""
    following = itertools.cycle(calls)
    return lambda: next(following)()
