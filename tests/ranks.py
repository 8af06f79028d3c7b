"""Runs a function in several processes that form a gloo group."""

import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import TIMEOUT, context

#: Seconds that a rank waits for another: less than a test waits for its ranks.
GROUP_TIMEOUT = 60


class RankError(Exception):
    """What went wrong on the ranks, as text."""


def on_ranks(world: int, function: Any, *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returns on each of ``world`` processes.

    Results travel as ``torch.save`` has them. The function must be one of a module's own.

    Raises:
        RankError: a rank raised, or did not end.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_run, args=(rank, world, folder, function, arguments))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
        hung = [process for process in processes if process.is_alive()]
        for process in hung:
            process.kill()
            process.join()
        found = [_read(Path(folder), rank) for rank in range(world)]
    errors = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(found) if text]
    if errors:
        raise RankError("\n".join(errors))
    return [result for _, result in found]


def _run(rank: int, world: int, folder: str, function: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # torch.empty comes filled with NaN, as in all tests
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=GROUP_TIMEOUT),
    )
    text, result = None, None
    try:
        result = function(rank, *arguments)
    except Exception:
        text = traceback.format_exc()
    torch.save((text, result), f"{folder}/{rank}")
    if text is None:  # one that failed does not wait for the others
        dist.barrier()
        dist.destroy_process_group()


def _read(folder: Path, rank: int) -> tuple[str | None, Any]:
    path = folder / str(rank)
    if not path.exists():
        return "did not end, or died", None
    return torch.load(path, weights_only=False)


def message_of(call: Any, *arguments: Any, **options: Any) -> str:
    """The error that a call raises, as ``Type: message``."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
