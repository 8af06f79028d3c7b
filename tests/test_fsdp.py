"""A student under FSDP2, with the loss outside of it under DDP."""

import pytest
import torch
import torch.distributed as dist
from distillers import MEMORIES, Distiller, batches, share_of, shares, train
from ranks import on_ranks
from test_distributed import CLOSE
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

GATHERS = ["keys", "shard"]


def train_sharded_student(rank):
    found = {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for gather in GATHERS:
        plain = Distiller(**MEMORIES["fifo 2025"], gather=gather)
        student = fully_shard(plain.student, mesh=mesh)
        criterion = DDP(plain.criterion)
        parameters = [*student.parameters(), *plain.criterion.embed_s.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.3)
        losses = []
        for batch in batches():
            x, f_t, *samples = share_of(batch, rank, shares(dist.get_world_size(), False))
            optimizer.zero_grad()
            loss = criterion(student(x), f_t, *samples)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        state = {k: v.full_tensor() for k, v in student.state_dict().items()}
        found[gather] = (torch.stack(losses), state, plain.criterion.embed_s.weight.detach())
    return found


@pytest.fixture(scope="module")
def sharded():
    return on_ranks(2, train_sharded_student)


@pytest.mark.parametrize("gather", GATHERS)
def test_a_student_under_fsdp2(gather, sharded):
    plain = Distiller(**MEMORIES["fifo 2025"])
    wanted = train(plain, plain, 0, shares(1, False))
    losses = torch.stack([rank[gather][0] for rank in sharded]).mean(0)
    torch.testing.assert_close(losses, torch.stack(wanted.losses), **CLOSE)
    for rank in sharded:
        _, student, weight = rank[gather]
        for name, value in student.items():
            torch.testing.assert_close(value, wanted.state[f"student.{name}"], **CLOSE)
        embedded = wanted.state["criterion.memory.embed_s.weight"]
        torch.testing.assert_close(weight, embedded, **CLOSE)
