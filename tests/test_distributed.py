"""Several processes with one memory train as one process does, over gloo."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from distillers import MEMORIES, Distiller, batches, share_of, shares, train
from ranks import message_of, on_ranks
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from rrd_kernels.distributed import ignore_in_ddp

#: Another order of summation changes the last bits of float64, 1e-16 of a number. A wrong row,
#: weight or scale changes percents. Ten steps would have to magnify rounding ten million times to
#: come over this.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
WORLDS = [2, 4]
KINDS = [(name, uneven) for name in MEMORIES for uneven in (False, True)]


def train_all(rank):
    """Trajectories of all kinds, each rank from weights and a memory of its own."""
    found = {}
    for name, uneven in KINDS:
        plain = Distiller(**MEMORIES[name])
        if rank > 0:  # which DDP and the first step are to replace by those of rank 0
            for value in plain.state_dict().values():
                value.copy_(torch.rand(value.shape, dtype=torch.float64))
        module = DDP(ignore_in_ddp(plain))
        found[name, uneven] = train(module, plain, rank, shares(dist.get_world_size(), uneven))
    return found


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"W={world}")
def trained(request):
    return on_ranks(request.param, train_all)


@pytest.fixture(scope="module")
def alone():
    def one_process(name):
        plain = Distiller(**MEMORIES[name])
        return train(plain, plain, 0, shares(1, False))

    return {name: one_process(name) for name in MEMORIES}


@pytest.mark.parametrize(("name", "uneven"), KINDS)
class TestTrajectories:
    def test_losses(self, name, uneven, trained, alone):
        each = torch.tensor([rank[name, uneven].losses for rank in trained])
        torch.testing.assert_close(each.mean(0), torch.stack(alone[name].losses), **CLOSE)

    def test_gradients(self, name, uneven, trained, alone):
        wanted = alone[name].first_gradients
        assert any("embed_s" in parameter for parameter in wanted)
        for rank in trained:
            torch.testing.assert_close(rank[name, uneven].first_gradients, wanted, **CLOSE)

    def test_weights_and_memory(self, name, uneven, trained, alone):
        for rank in trained:
            torch.testing.assert_close(rank[name, uneven].state, alone[name].state, **CLOSE)

    def test_memories_are_bitwise_equal(self, name, uneven, trained, alone):
        first, *others = [rank[name, uneven].state for rank in trained]
        for other in others:
            for key, value in other.items():
                assert torch.equal(value, first[key]), key


def test_the_trajectories_could_fail(alone):
    """They depend on the memory: a training that keeps only its own half's rows ends elsewhere."""
    for name in MEMORIES:
        plain = Distiller(**MEMORIES[name])
        half = train(plain, plain, 0, [6, 6])
        weight = "student.0.weight"
        assert (half.state[weight] - alone[name].state[weight]).abs().max() > 1e-6


def apart(rank):
    """Two DDP modules with all defaults, the loss in one of its own; and memories each."""
    plain = Distiller(**MEMORIES["fifo 2025"])
    student, criterion = DDP(plain.student), DDP(plain.criterion)
    sizes = shares(dist.get_world_size(), False)

    def module(x, f_t, *samples):
        return criterion(student(x), f_t, *samples)

    together = train(module, plain, rank, sizes)
    plain = Distiller(**MEMORIES["fifo 2025"], gather="none")
    own = train(DDP(ignore_in_ddp(plain)), plain, rank, sizes)
    return together, own


def test_default_arguments_of_ddp(alone):
    for together, own in on_ranks(2, apart):
        torch.testing.assert_close(together.state, alone["fifo 2025"].state, **CLOSE)
        # Ten batches of six rows: the pointer of a memory of its own.
        assert own.state["criterion.memory.queue_ptr"].item() == 60 % 30
    rows = [own.state["criterion.memory.queue"] for _, own in on_ranks(2, apart)]
    assert not torch.equal(*rows)


def each_by_itself(rank):
    """As the published ImageNet script has it: student and both projections in a DDP each, and the
    criterion in none; and without DDP for the projections."""
    found = {}
    for name, uneven, wraps in BY_THEMSELVES:
        plain = Distiller(**MEMORIES[name])
        criterion = plain.criterion
        if rank > 0 and wraps:  # the projections that DDP is to replace by those of rank 0
            for value in (*criterion.embed_s.parameters(), *criterion.embed_t.parameters()):
                value.data.copy_(torch.rand_like(value))
        student, *_ = modules = [DDP(plain.student)]
        if wraps:
            modules += [DDP(criterion.embed_s), DDP(criterion.embed_t)]

        def module(x, f_t, *samples, student=student, criterion=criterion):
            return criterion(student(x), f_t, *samples)

        found[name, uneven, wraps] = train(module, plain, rank, shares(2, uneven))
        for p in criterion.embed_t.parameters():
            assert (p.grad is not None) == (name == "crd")
        copy.deepcopy(criterion)
        pickle.dumps(criterion)
    return found


BY_THEMSELVES = [(name, uneven, True) for name in MEMORIES for uneven in (False, True)]
BY_THEMSELVES += [("fifo 2025", True, False)]


def test_projections_in_a_ddp_each(alone):
    results = on_ranks(2, each_by_itself)
    for name, uneven, wraps in BY_THEMSELVES:
        for found in results:
            state = found[name, uneven, wraps].state
            torch.testing.assert_close(state, alone[name].state, **CLOSE)


def rows_in_shared_memory(rank):
    plain = Distiller(**MEMORIES["fifo 2025"]).share_memory()  # as spawn's arguments are
    message = message_of(plain, *batches()[0])
    copy.deepcopy(plain)(*batches()[0])
    return message


def test_rows_that_all_ranks_would_write():
    for message in on_ranks(2, rows_in_shared_memory):
        assert "RuntimeError: the memory's rows are in shared memory" in message


def wrapped_as_it_is(rank):
    with pytest.warns(UserWarning, match="changes nothing and takes time.*ignore_in_ddp"):
        DDP(Distiller(**MEMORIES["fifo 2025"]))(*batches()[0])
    module = DDP(Distiller(**MEMORIES["fifo 2025"], gather="none"))
    return message_of(module, *batches()[0])


def test_ddp_that_would_copy_memories():
    for message in on_ranks(2, wrapped_as_it_is):
        assert message.startswith("RuntimeError: DistributedDataParallel copies rank 0's memory")
        assert "ignore_in_ddp" in message


def a_group_of_its_own(rank):
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine, other = pairs[rank // 2], pairs[1 - rank // 2]
    assert "process_group must contain this process" in message_of(
        Distiller, **MEMORIES["fifo 2025"], process_group=other
    )
    plain = Distiller(**MEMORIES["fifo 2025"], process_group=mine)
    plain(*share_of(batches()[rank // 2], rank % 2, [6, 6]))
    return plain.state_dict()["criterion.memory.queue"]


def pairs_under_one_ddp(rank):
    """DDP over all four, a memory for each two."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    settings = MEMORIES["fifo 2025"] | {"process_group": groups[rank // 2]}
    message = message_of(DDP(Distiller(**settings)), *batches()[0])
    module = Distiller(**settings)
    wrapped = DDP(ignore_in_ddp(module))
    for batch in batches()[:2]:
        wrapped(*share_of(batch, rank, [3, 3, 3, 3])).backward()
    return message, module.state_dict()["criterion.memory.queue"]


def test_process_groups_within_ddp():
    found = on_ranks(4, pairs_under_one_ddp)
    for message, _ in found:
        assert message.startswith("RuntimeError: DistributedDataParallel copies rank 0's memory")
    queues = [queue for _, queue in found]
    assert torch.equal(queues[0], queues[1])
    assert torch.equal(queues[2], queues[3])
    assert not torch.equal(queues[0][:12], queues[2][:12])


def test_process_groups():
    queues = on_ranks(4, a_group_of_its_own)
    assert torch.equal(queues[0], queues[1])
    assert torch.equal(queues[2], queues[3])
    assert not torch.equal(queues[0], queues[2])


def steps_in_two_groups(rank, folder):
    """Both ranks', each one's alone, and both ranks' in a group made since."""
    found = {}
    for name in ("fifo 2025", "momentum"):
        module = Distiller(**MEMORIES[name])
        together, alone, again = (
            [part[3 * rank : 3 * rank + 3] for part in batch] for batch in batches()[:3]
        )
        module(*together)
        dist.destroy_process_group()
        module(*alone)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=2
        )
        module(*again)
        found[name] = module.criterion.memory.state_dict()
    return found


def test_memories_after_steps_outside_the_group(tmp_path):
    """What ranks had alike in one group they need not have in the next."""
    first, second = on_ranks(2, steps_in_two_groups, str(tmp_path))
    for name, state in first.items():
        for buffer, value in state.items():
            assert torch.equal(value, second[name][buffer]), (name, buffer)
