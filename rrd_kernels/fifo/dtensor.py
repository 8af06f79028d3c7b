"""A memory's shard in a state_dict: a DTensor, which knows the whole.

``torch.distributed.checkpoint`` saves and loads it over any number of ranks, and its ``state_dict``
module gathers it, with ``full_state_dict=True``, into the shard of one process.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rrd_kernels.distributed.ranks import Ranks
from rrd_kernels.fifo.shard import Shard


def as_dtensor(rows: Tensor, shard: Shard, ranks: Ranks) -> Any:
    """The K rows of which each rank's ``rows`` are a part; they share its storage.

    Raises:
        RuntimeError: there is no process group any more.
    """
    if ranks.size == 1:
        raise RuntimeError(
            f"the state of a memory that is spread over {shard.ranks} ranks needs their process "
            f"group: take it before destroy_process_group"
        )
    # Not at import: it takes half a second.
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = DeviceMesh.from_group(
        ranks.group or dist.distributed_c10d._get_default_group(), rows.device.type
    )
    shape = torch.Size((shard.size, rows.shape[1]))
    return DTensor.from_local(
        rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1)
    )


def own_rows(value: Any, shard: Shard) -> Any:
    """This rank's rows of what a state_dict holds: all K rows, or a DTensor of this shard.

    Anything else is returned as it is, for ``load_state_dict`` to refuse or to copy.

    Raises:
        ValueError: a DTensor with another rank's rows, as one rank's file has them for all.
    """
    if type(value).__name__ == "DTensor":
        if value.device_mesh.size() == shard.ranks and value.shape[0] == shard.size:
            place = value.device_mesh.get_coordinate()
            if place is None or place[0] != shard.rank:
                raise ValueError(
                    f"this state has rank {place and place[0]}'s rows, and this is rank "
                    f"{shard.rank}: save a spread memory with torch.distributed.checkpoint, or "
                    f"with full_state_dict=True"
                )
            return value.to_local()
        return value.full_tensor() if shard.ranks == 1 else value
    if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == shard.size:
        # With assign=True a view would keep all K rows.
        return shard.part_of(value) if shard.ranks == 1 else shard.part_of(value).clone()
    return value
