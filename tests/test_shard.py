"""A memory spread over ranks trains as one process with the whole of it does."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from distillers import SIZES, Distiller, batches, share_of, shares, train
from ranks import message_of, on_ranks
from test_distributed import CLOSE
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from rrd_kernels import RRDLoss
from rrd_kernels.distributed import ignore_in_ddp
from rrd_kernels.fifo import start
from rrd_kernels.fifo.shard import Shard

#: 31 rows over 2 or 4 ranks: 16 and 15, or 8, 8, 8 and 7. A temperature of 0.01 is beyond the
#: bounded softmax, and the reference never takes it.
MEMORIES = {
    "2025": {"nce_k": 31},
    "2024": {"nce_k": 31, "protocol": "2024"},
    "unit": {"nce_k": 31, "start": "unit", "slot_momentum": 0.5},
    "online": {"nce_k": 31, "start": "unit", "nce_t_t": 0.01},
    "reference": {"nce_k": 31, "backend": "reference"},
}
KINDS = [(name, uneven) for name in MEMORIES for uneven in (False, True)]
QUEUE = "criterion.memory.queue"


def whole(module):
    """Its state in the layout of one process."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in module.state_dict().items()
    }


def train_all(rank):
    found = {}
    for name, uneven in KINDS:
        plain = Distiller(**MEMORIES[name], gather="shard")
        start = whole(plain)
        sizes = shares(dist.get_world_size(), uneven)
        trajectory = train(DDP(ignore_in_ddp(plain)), plain, rank, sizes)
        trajectory.state = whole(plain)
        module = plain.eval()
        evaluated = module(*share_of(batches(9)[0], rank, sizes)).detach()
        with torch.no_grad():
            alone = module(*share_of(batches(9)[0], rank, sizes))
        torch.testing.assert_close(alone, evaluated, **CLOSE)
        assert not {k for k, v in whole(plain).items() if not v.equal(trajectory.state[k])}
        held = plain.criterion.memory.queue.shape[0]
        found[name, uneven] = (start, trajectory, evaluated, held)
    return found


@pytest.fixture(scope="module", params=[2, 4], ids=lambda world: f"W={world}")
def trained(request):
    return on_ranks(request.param, train_all)


@pytest.fixture(scope="module")
def alone():
    def one_process(name):
        plain = Distiller(**MEMORIES[name], gather="shard")
        start = copy.deepcopy(plain.state_dict())
        trajectory = train(plain, plain, 0, shares(1, False))
        return start, trajectory, plain.eval()(*batches(9)[0]).detach()

    return {name: one_process(name) for name in MEMORIES}


@pytest.mark.parametrize(("name", "uneven"), KINDS)
class TestTrajectories:
    def test_rows_of_each_rank(self, name, uneven, trained, alone):
        held = [rank[name, uneven][3] for rank in trained]
        assert held == {2: [16, 15], 4: [8, 8, 8, 7]}[len(trained)]

    def test_the_same_seed_starts_alike(self, name, uneven, trained, alone):
        for rank in trained:
            torch.testing.assert_close(rank[name, uneven][0], alone[name][0], **CLOSE)

    def test_losses(self, name, uneven, trained, alone):
        each = torch.tensor([rank[name, uneven][1].losses for rank in trained])
        torch.testing.assert_close(each.mean(0), torch.stack(alone[name][1].losses), **CLOSE)

    def test_gradients(self, name, uneven, trained, alone):
        wanted = alone[name][1].first_gradients
        for rank in trained:
            torch.testing.assert_close(rank[name, uneven][1].first_gradients, wanted, **CLOSE)

    def test_weights_and_memory(self, name, uneven, trained, alone):
        for rank in trained:
            torch.testing.assert_close(rank[name, uneven][1].state, alone[name][1].state, **CLOSE)

    def test_evaluation(self, name, uneven, trained, alone):
        """Each rank the mean over its own samples, as in the other modes."""
        each = torch.stack([rank[name, uneven][2] for rank in trained])
        samples = torch.tensor(shares(len(trained), uneven), dtype=each.dtype)
        mean = (each * samples).sum() / samples.sum()
        torch.testing.assert_close(mean, alone[name][2], **CLOSE)


def save(rank, folder):
    module = Distiller(**MEMORIES["2025"], gather="shard")
    module(*share_of(batches()[0], rank, shares(dist.get_world_size(), False)))
    checkpoint.save(module.state_dict(), checkpoint_id=folder)
    exported = get_model_state_dict(
        module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole(module), exported


def load(rank, folder):
    """In place, as torch.distributed.checkpoint loads, from another start."""
    module = Distiller(**MEMORIES["2025"], gather="shard")
    for value in module.buffers():
        value.fill_(7)
    state = module.state_dict()
    checkpoint.load(state, checkpoint_id=folder)
    module.load_state_dict(state)
    loaded = whole(module)
    loss = module(*share_of(batches()[1], rank, shares(dist.get_world_size(), False)))
    return loaded, loss.detach()


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"), [(2, 4), (2, 1), pytest.param(4, 2, marks=pytest.mark.long)]
)
def test_checkpoints_over_another_number_of_ranks(saved_by, loaded_by, tmp_path):
    (state, exported), *others = on_ranks(saved_by, save, str(tmp_path))
    assert all(not other for _, other in others)  # rank 0 has it, as full_state_dict says
    found = on_ranks(loaded_by, load, str(tmp_path))
    for loaded, _ in found:
        torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    # And goes on in one process with the whole memory, from either.
    module = Distiller(**MEMORIES["2025"])
    module.load_state_dict(exported)
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)
    losses = torch.stack([loss for _, loss in found])
    torch.testing.assert_close(losses.mean(), module(*batches()[1]).detach(), **CLOSE)


def spread(rank, state):
    module = Distiller(**MEMORIES["2025"], gather="shard")
    module.load_state_dict(state)
    assert torch.equal(whole(module)[QUEUE], state[QUEUE])
    state = {**state, QUEUE: state[QUEUE][:30]}
    return message_of(module.load_state_dict, state)


def test_a_state_of_one_process_is_spread():
    module = Distiller(**MEMORIES["2025"])
    module(*batches()[0])
    for message in on_ranks(2, spread, module.state_dict()):
        assert "size mismatch for criterion.memory.queue" in message


@pytest.mark.parametrize(("size", "dim"), [(70, 8), (65, 8), (9, 33)])
@pytest.mark.parametrize("how", start.STARTS)
def test_rows_drawn_in_pieces_are_those_of_one_draw(how, size, dim, monkeypatch):
    """Pieces of 16 rows, or columns; the last one has fewer, or fewer than 16 numbers."""
    monkeypatch.setattr(start, "ROWS_AT_ONCE", 16)
    for dtype in (torch.float64, torch.float32):
        parts = []
        for rank in range(3):
            torch.manual_seed(4)
            place = Shard(size, 3, rank)
            parts.append(start.draw_rows(place, dim, how, device=None, dtype=dtype))
        after = torch.rand(1)
        torch.manual_seed(4)
        rows = start.draw_rows(Shard(size, 1, 0), dim, how, device=None, dtype=dtype)
        accuracy = CLOSE if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-7}
        torch.testing.assert_close(torch.cat(parts), rows, **accuracy)
        assert torch.rand(1) == after


def refuse(rank):
    messages = [message_of(RRDLoss, **SIZES, nce_k=1, gather="shard")]
    criterion = RRDLoss(**SIZES, nce_k=10, gather="shard")
    before = copy.deepcopy(criterion.memory.queue)
    criterion.warmup(3)
    rows = torch.randn(6, 10), torch.randn(6, 9)
    messages.append(message_of(criterion, *rows))
    messages.append(message_of(criterion.train(rank == 0), *rows, update=False))
    messages.append(message_of(criterion.train(), rows[0], rows[1][: 6 - rank]))
    assert torch.equal(criterion.memory.queue, before)
    module = DDP(Distiller(nce_k=30, gather="shard"))
    messages.append(message_of(module, *share_of(batches()[0], rank, [6, 6])))
    return messages


def test_errors():
    first, second = on_ranks(2, refuse)
    for messages in (first, second):
        assert "ValueError: a memory of 1 rows cannot be spread over 2 ranks" in messages[0]
        assert "ValueError: batches of [6, 6] rows on 2 ranks do not fit a memory" in messages[1]
        assert "training is True on ranks [0], False on ranks [1]" in messages[2]
        assert "DistributedDataParallel copies rank 0's memory over" in messages[4]
    assert first[3].startswith("RuntimeError: other ranks refused their input (rank 1: ValueError")
    assert second[3].startswith("ValueError: f_s and f_t must have the same batch size")


def made_alone(rank, early):
    groups = [dist.new_group([each]) for each in range(2)]
    group = groups[rank] if rank in early else None
    criterion = RRDLoss(**SIZES, nce_k=10, gather="shard", process_group=group)
    criterion.memory.ranks.group = None  # as if the others had come only now
    return message_of(criterion, torch.randn(2, 10), torch.randn(2, 9))


@pytest.mark.parametrize("early", [(0, 1), (0,)], ids=str)
def test_a_criterion_that_was_made_too_early(early):
    for message in on_ranks(2, made_alone, early):
        assert "this memory has the rows of rank 0 of 1, but this is" in message
        assert "construct the criterion on every rank, after init_process_group" in message


def sent(rank):
    """The first rank's criterion, and the file that its state makes, on every rank."""
    module = Distiller(**MEMORIES["2025"], gather="shard")
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    both = [module, file.getvalue()]
    dist.broadcast_object_list(both, 0)
    loaded = torch.load(io.BytesIO(both[1]), weights_only=False)
    return message_of(both[0], *batches()[0]), message_of(module.load_state_dict, loaded)


def test_what_belongs_to_another_rank():
    first, second = on_ranks(2, sent)
    assert second[0].startswith("RuntimeError: this memory has the rows of rank 0 of 2, but this")
    assert first[0].startswith("RuntimeError: other ranks refused their input (rank 1: Runt")
    wanted = "this state_dict has the rows of rank 0, but this is rank 1: save a spread memory"
    assert wanted in second[1]
    assert first[1] == "nothing was raised"


def loaded_by_one(rank, refused):
    """The other does not try, or is refused."""
    module = Distiller(**MEMORIES["2025"], gather="shard")
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        module.load_state_dict(state)
    elif refused:
        queue = module.criterion.memory.queue
        with pytest.raises(RuntimeError, match="size mismatch"):
            module.load_state_dict({QUEUE: queue[:3]}, strict=False)
    return message_of(module, *batches()[0])


@pytest.mark.parametrize("refused", [False, True])
def test_a_state_that_only_one_rank_has_loaded(refused):
    for message in on_ranks(2, loaded_by_one, refused):
        assert "the number of states loaded is 1 on ranks [0], 0 on ranks [1]" in message


def assign(rank):
    module = Distiller(**MEMORIES["2025"], gather="shard")
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    every = [state]
    dist.broadcast_object_list(every, 0)
    module.load_state_dict(every[0], assign=True)
    queue = module.criterion.memory.queue
    return queue.untyped_storage().nbytes() == queue.nbytes


def test_a_state_that_is_assigned_leaves_no_other_ranks_rows():
    assert on_ranks(2, assign) == [True, True]


def state_after_the_group(rank):
    criterion = RRDLoss(**SIZES, nce_k=30, gather="shard")
    dist.destroy_process_group()
    messages = [message_of(criterion.state_dict)]
    messages.append(message_of(criterion, torch.randn(4, 10), torch.randn(4, 9)))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return messages


def test_a_shard_outlives_no_group():
    for state, step in on_ranks(2, state_after_the_group):
        assert "call state_dict() before destroy_process_group" in state
        assert "use it before destroy_process_group" in step


def small_temperatures(rank):
    """The mean loss of all samples, in float32 and where the ranks' sums have shifts of their own,
    far from one another's."""
    torch.manual_seed(3)
    sizes = {"s_dim": 8, "t_dim": 8, "feat_dim": 8, "nce_k": 31, "start": "unit"}
    criterion = RRDLoss(**sizes, nce_t_s=0.005, nce_t_t=0.005, gather="shard")
    f_s, f_t = torch.randn(2, 8, 8)
    own = slice(2 * rank, 2 * rank + 2) if dist.is_initialized() else slice(None)
    return criterion(f_s[own], f_t[own]).detach()


def test_sums_of_ranks_that_float32_does_not_hold():
    losses = torch.stack(on_ranks(4, small_temperatures))
    # A logit is up to 1/tau = 200 and rounded to 2^-24 of that, a few times on either way.
    torch.testing.assert_close(
        losses.mean(), small_temperatures(0), rtol=0, atol=16 * 2.0**-24 * 200
    )
