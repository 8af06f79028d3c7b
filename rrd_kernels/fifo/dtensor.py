"""A memory's shard in a state_dict: a DTensor of all K rows.

``torch.distributed.checkpoint`` saves and loads it over any number of ranks. Its ``state_dict``
module, with ``full_state_dict=True``, gathers all rows for a single process to load.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.fifo.shard import Shard


def as_dtensor(rows: Tensor, shard: Shard, ranks: Ranks) -> Any:
    """A DTensor of all K rows, of which ``rows`` are this rank's; it shares their storage.

    Raises:
        RuntimeError: the process group has been destroyed.
    """
    if ranks.count == 1:
        raise RuntimeError(
            f"the state_dict of a memory spread over {shard.ranks} ranks needs their process "
            f"group: call state_dict() before destroy_process_group"
        )
    # Not imported at the top: it takes half a second.
    from torch.distributed import tensor as dtensor
    from torch.distributed.device_mesh import DeviceMesh

    mesh = DeviceMesh.from_group(
        ranks.group or dist.distributed_c10d._get_default_group(), rows.device.type
    )
    shape = torch.Size((shard.size, rows.shape[1]))
    return dtensor.DTensor.from_local(
        rows, mesh, [dtensor.Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1)
    )


def own_rows(value: Any, shard: Shard) -> Any:
    """This rank's rows of a state_dict's entry: all K rows, or a DTensor with the same shards.

    Any other value is returned unchanged, for ``load_state_dict`` to refuse or to copy.

    Raises:
        ValueError: a DTensor with another rank's rows, as when all ranks load one rank's file.
    """
    if type(value).__name__ == "DTensor":
        if value.device_mesh.size() == shard.ranks and value.shape[0] == shard.size:
            place = value.device_mesh.get_coordinate()
            if place is None or place[0] != shard.rank:
                raise ValueError(
                    f"this state_dict has the rows of rank {place and place[0]}, but this is rank "
                    f"{shard.rank}: save a spread memory with torch.distributed.checkpoint, or "
                    f"with full_state_dict=True"
                )
            return value.to_local()
        return value.full_tensor() if shard.ranks == 1 else value
    if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == shard.size:
        # A clone: with assign=True a view would keep the memory of all K rows.
        return shard.part_of(value) if shard.ranks == 1 else shard.part_of(value).clone()
    return value
