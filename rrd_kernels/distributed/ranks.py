"""The processes that share a memory."""

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rrd_kernels import validation as check

GATHERS = ("keys", "none", "shard")


class Ranks:
    """A process group, looked up at each use, and what its ranks share.

    Args:
        gather: ``"keys"``, one memory, copied to every rank; ``"none"``, one memory per rank; or
            ``"shard"``, one memory, of which each rank holds a part.
        process_group: the group. Default: all processes if ``init_process_group`` has run, else
            this process alone.

    Raises:
        TypeError, ValueError: an argument of the wrong type, an unknown ``gather``, or a group that
            this process is not in.
    """

    def __init__(self, gather: str, process_group: Any = None) -> None:
        check.check_choice("gather", gather, GATHERS)
        if process_group is not None:
            # new_group returns this to a process outside the group.
            outsider = dist.GroupMember.NON_GROUP_MEMBER if dist.is_available() else None
            if process_group == outsider:
                raise ValueError(
                    "process_group must contain this process; construct the criterion only on the "
                    "ranks of the group"
                )
            if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
                raise TypeError(
                    f"process_group must be a torch.distributed.ProcessGroup or None; got "
                    f"{type(process_group).__name__}"
                )
        self.gather = gather
        self.group = process_group
        self._met: weakref.ref[Any] | None = None

    @property
    def count(self) -> int:
        """W, the number of processes."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's place among them, from 0."""
        return dist.get_rank(self.group) if self.count > 1 else 0

    def refuse_shared(self, rows: Tensor) -> None:
        """Raises if other processes write the same storage: each rank's rows would be written by
        all.

        Raises:
            RuntimeError: the rows are in shared memory.
        """
        if torch.compiler.is_compiling() or rows.device.type != "cpu":
            return
        if rows.untyped_storage().is_shared():
            raise RuntimeError(
                "the memory's rows are in shared memory, as they are if the criterion is an "
                "argument of torch.multiprocessing.spawn: construct the criterion in each process, "
                "or copy.deepcopy it there"
            )

    def are_others(self) -> bool:
        """Whether the process group is another one than at the last call, or this is the first.

        Memories that were equal in the old group need not be equal in the new one.
        """
        group = self.group or dist.group.WORLD
        before, self._met = self._met, weakref.ref(group)
        return before is None or before() is not group

    def device_for_numbers(self, device: torch.device) -> torch.device:
        """The device for exchanging a few integers: the CPU if the group has a CPU backend, so that
        reading them does not wait for a GPU."""
        cpu = "cpu:" in dist.get_backend_config(self.group)
        return torch.device("cpu") if cpu else device

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        return Ranks(self.gather, self.group)  # the group is shared, not copied

    def __getstate__(self) -> dict[str, Any]:
        if self.group is not None:
            raise TypeError(
                "a criterion that was given a process_group cannot be pickled; save its "
                "state_dict() instead"
            )
        return {**self.__dict__, "_met": None}  # a copy elsewhere has another group
