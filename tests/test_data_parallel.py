"""nn.DataParallel: its copies of a criterion would lose what they write."""

import copy
import sys

import pytest
import torch
from torch import nn

from rrd_kernels import RRDLoss

KINDS = {
    "fifo": {"nce_k": 32},
    "momentum": {"memory_type": "momentum", "n_data": 40, "nce_k": 6},
}


@pytest.fixture
def two_devices(monkeypatch):
    """nn.DataParallel's copies for two devices, all on the CPU."""
    replicate = sys.modules["torch.nn.parallel.replicate"]

    def broadcast(tensors, devices, detach=False):
        return [list(tensors), *([t.clone() for t in tensors] for _ in devices[1:])]

    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", broadcast)
    return lambda module: replicate.replicate(module, [0, 1])


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a module"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_is_refused(kind, inside, two_devices):
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=16, **KINDS[kind])
    module = nn.ModuleDict({"student": nn.Linear(4, 12), "criterion": criterion})
    state = copy.deepcopy(criterion.state_dict())
    batch = torch.randn(6, 12), torch.randn(6, 20), torch.arange(6)
    for copied in two_devices(module if inside else criterion):
        replica = copied["criterion"] if inside else copied
        with pytest.raises(RuntimeError, match=r"DataParallel.*DistributedDataParallel"):
            replica(*batch)
        # An evaluation is right: nothing is to be written.
        torch.manual_seed(0)
        loss = replica(*batch, update=False)
        torch.manual_seed(0)
        torch.testing.assert_close(loss, criterion(*batch, update=False))
    torch.testing.assert_close(dict(criterion.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would be moved to the GPUs")
def test_without_a_gpu_it_trains():
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=16, nce_k=32)
    nn.DataParallel(criterion)(torch.randn(6, 12), torch.randn(6, 20))
    assert criterion.queue_ptr.item() == 6
