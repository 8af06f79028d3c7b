"""What one rank is given wrong, every rank hears of, before a row has moved."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from distillers import MEMORIES, SIZES, Distiller, batches, share_of
from ranks import message_of, on_ranks
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from rrd_kernels import RRDLoss
from rrd_kernels.distributed import ignore_in_ddp
from rrd_kernels.fifo import functional as fifo_functional
from rrd_kernels.fifo import partials
from rrd_kernels.momentum import functional as momentum_functional


def given(rank, batch=0):
    return share_of(batches()[batch], rank, [6, 6])


def as_dtensor(tensor):
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor, DeviceMesh("cpu", [0, 1]), run_check=False)


def broken(rank, kind):
    """Rank 1's part of a batch with something wrong in it."""
    x, f_t, idx, contrast_idx = given(rank)
    if rank == 1:
        if kind == "another width":
            f_t = f_t[:, :5]
        elif kind == "not a tensor":
            f_t = f_t.tolist()
        elif kind == "no such sample":
            idx[2] = 50
        elif kind == "no such column":
            contrast_idx[1, 3] = -1
        elif kind == "no columns":
            contrast_idx = contrast_idx[:, :0]
        elif kind == "another batch":
            f_t = f_t[:4]
        elif kind == "no samples' numbers":
            return x, f_t
        elif kind == "a DTensor":
            f_t = as_dtensor(f_t)
        elif kind == "samples in a DTensor":
            idx = as_dtensor(idx)
        elif kind == "columns in a DTensor":
            contrast_idx = as_dtensor(contrast_idx)
    elif "DTensor" in kind:
        as_dtensor(f_t)  # all ranks make a mesh together
    return x, f_t, idx, contrast_idx


BROKEN = {
    "another width": "ValueError: f_t must be [B, 9]; got shape (6, 5)",
    "not a tensor": "TypeError: f_t must be a Tensor; got list",
    "another batch": "ValueError: f_s and f_t must have the same batch size",
    "a DTensor": "TypeError: f_t is a DTensor; pass its local or full tensor",
}
BROKEN_SAMPLES = {
    "no such sample": "IndexError: idx must be in [0, 50 = n_data); got 50",
    "no such column": "IndexError: contrast_idx must be in [0, 50); got -1",
    "no columns": "ValueError: contrast_idx must name at least one row for each sample; got P = 0",
    "no samples' numbers": "ValueError: the momentum memory needs idx",
    "samples in a DTensor": "TypeError: idx is a DTensor; pass its local or full tensor",
    "columns in a DTensor": "TypeError: contrast_idx is a DTensor; pass its local or full tensor",
}


def refuse_and_go_on(rank, cases):
    found = []
    for memory, kind in cases:
        module = Distiller(**MEMORIES[memory])
        module(*given(rank))
        before = copy.deepcopy(module.state_dict())
        message = message_of(module, *broken(rank, kind))
        same = all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        loss = module(*given(rank, 1))
        found.append((message, same, loss.detach()))
    return found


def test_input_that_one_rank_refuses():
    cases = [("fifo 2025", kind) for kind in BROKEN]
    cases += [("momentum", kind) for kind in (*BROKEN, *BROKEN_SAMPLES)]
    first, second = on_ranks(2, refuse_and_go_on, cases)
    for (_, kind), (theirs, *untouched), (mine, *also) in zip(cases, first, second, strict=True):
        wanted = (BROKEN | BROKEN_SAMPLES)[kind]
        assert mine.startswith(wanted)
        assert theirs.startswith(f"RuntimeError: other ranks refused their input (rank 1: {wanted}")
        for same, loss in (untouched, also):
            assert same
            assert loss.isfinite()


#: Settings of rank 1 that are not those of rank 0, and what is said of them.
DIFFERENT = [
    ({"nce_k": 31}, "nce_k is 30 on ranks [0], 31 on ranks [1]"),
    ({"feat_dim": 7}, "feat_dim is 8 on ranks [0], 7 on ranks [1]"),
    ({"nce_t_t": 0.03}, "tau_t is 0.02 on ranks [0], 0.03 on ranks [1]"),
    ({"protocol": "2024", "nce_t_s": 0.1, "nce_t_t": 0.02}, "enqueue is 'before' on ranks [0]"),
    ({"slot_momentum": 0.5}, "slot_momentum is 0.0 on ranks [0], 0.5 on ranks [1]"),
    ({"memory_dtype": torch.bfloat16}, "memory_dtype is torch.float64 on ranks [0]"),
    (
        {"dtype": torch.float32},
        "dtype of z_s is torch.float64 on ranks [0], torch.float32 on ranks [1]",
    ),
    (MEMORIES["cosine"], "memory_type is 'fifo' on ranks [0], 'momentum' on ranks [1]"),
]


#: The same of momentum memories.
DIFFERENT_MOMENTUM = [
    ({"nce_k": 7}, "(nce_k, nce_t, nce_m) is (6, 0.07, 0.5) on ranks [0], (7, 0.07, 0.5) on ranks"),
    ({"nce_t": 0.1}, "(nce_k, nce_t, nce_m) is (6, 0.07, 0.5) on ranks [0], (6, 0.1, 0.5) on"),
    ({"nce_m": 0.9}, "(nce_k, nce_t, nce_m) is (6, 0.07, 0.5) on ranks [0], (6, 0.07, 0.9) on"),
    ({"n_data": 51}, "n_data is 50 on ranks [0], 51 on ranks [1]"),
]


def disagree(rank, common, different):
    messages = []
    for other, _ in different:
        settings = {**SIZES, "dtype": torch.float64, **common}
        criterion = RRDLoss(**settings | (other if rank else {}))
        rows = torch.randn(4, 10), torch.randn(4, 9), torch.arange(4)
        before = copy.deepcopy(criterion.state_dict())
        messages.append(message_of(criterion, *rows))
        assert all(torch.equal(v, before[k]) for k, v in criterion.state_dict().items())
    return messages


@pytest.mark.parametrize(
    ("memory", "different"),
    [("fifo 2025", DIFFERENT), ("momentum", DIFFERENT_MOMENTUM)],
    ids=["fifo", "momentum"],
)
def test_settings_that_differ(memory, different):
    for messages in on_ranks(2, disagree, MEMORIES[memory], different):
        for message, (_, wanted) in zip(messages, different, strict=True):
            assert message.startswith("ValueError: ranks that share a memory must agree: ")
            assert wanted in message


def columns(rank):
    """Another number of them on each rank: given, and drawn for a state that one has loaded."""
    x, f_t, idx, contrast_idx = given(rank)
    module = Distiller(**MEMORIES["momentum"])
    message = message_of(module, x, f_t, idx, contrast_idx[:, : 7 - rank])
    if rank == 0:
        more = Distiller(**MEMORIES["momentum"] | {"nce_k": 20})
        module.load_state_dict(more.state_dict())
    counts = []
    with pytest.MonkeyPatch.context() as patch:
        loss = momentum_functional.sampled_relational_loss

        def count(*arguments, **settings):
            counts.append(arguments[4].shape[1])
            return loss(*arguments, **settings)

        patch.setattr(momentum_functional, "sampled_relational_loss", count)
        for batch in range(2):
            module(*given(rank, batch)[:3])
    return message, counts


def test_columns_that_differ():
    for message, counts in on_ranks(2, columns):
        assert "P, the columns of contrast_idx, is 7 on ranks [0], 6 on ranks [1]" in message
        assert counts == [21, 21]


def seed_apart(rank, memory, name):
    criterion = RRDLoss(**SIZES, **memory)
    projection = getattr(criterion, name)
    with torch.no_grad():
        next(projection.parameters()).add_(rank)
    rows = torch.randn(4, 10), torch.randn(4, 9), torch.arange(4)
    before = copy.deepcopy(criterion.state_dict())
    messages = [message_of(criterion, *rows)]
    assert all(torch.equal(v, before[k]) for k, v in criterion.state_dict().items())
    share(projection)
    criterion(*rows)
    # Others on one rank only, later.
    state = criterion.state_dict()
    state[next(key for key in state if key.endswith(f"{name}.bias"))].add_(rank)
    criterion.load_state_dict(state)
    messages.append(message_of(criterion, *rows))
    share(projection)
    criterion(*rows)
    return messages


def share(projection):
    """What a script does about it: weights of one rank for all."""
    for weight in projection.parameters():
        dist.broadcast(weight.data, 0)


@pytest.mark.parametrize("name", ["embed_s", "embed_t"])
@pytest.mark.parametrize("shared", ["fifo 2025", "momentum", "shard"])
def test_projections_that_differ(shared, name):
    """No gradient would ever align them."""
    memory = MEMORIES.get(shared, {"nce_k": 30, "gather": "shard"})
    for messages in on_ranks(2, seed_apart, memory, name):
        for message in messages:
            assert message.startswith(
                f"ValueError: ranks that share a memory must have the same {name};"
            )
            assert "it differs between ranks [0] and ranks [1]: seed the ranks alike" in message


def overflow(rank):
    criterion = RRDLoss(**SIZES, nce_k=10)
    before = copy.deepcopy(criterion.state_dict())
    message = message_of(criterion, torch.randn(5 + rank, 10), torch.randn(5 + rank, 9))
    assert all(torch.equal(v, before[k]) for k, v in criterion.state_dict().items())
    # Either batch fits by itself, and enters where it is alone.
    RRDLoss(**SIZES, nce_k=10, gather="none")(torch.randn(6, 10), torch.randn(6, 9))
    different = message_of(criterion, torch.randn(4, 10), torch.randn(4, 9), update=rank == 0)
    return message, different


def test_more_rows_than_the_memory_has():
    for message, different in on_ranks(2, overflow):
        assert message.startswith("ValueError: batches of [5, 6] rows on 2 ranks do not fit a mem")
        assert "update is True on ranks [0], False on ranks [1]" in different


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match="gather must be one of 'keys', 'none'"):
        RRDLoss(**SIZES, gather="all")
    with pytest.raises(TypeError, match=r"process_group must be a torch.distributed.ProcessGroup"):
        RRDLoss(**SIZES, process_group="gloo")


def copies(rank):
    group = dist.new_group([0, 1])
    criterion = RRDLoss(**SIZES, nce_k=30, process_group=group)
    assert copy.deepcopy(criterion).memory.ranks.group is group
    plain = pickle.loads(pickle.dumps(RRDLoss(**SIZES, nce_k=30)))
    plain(torch.randn(4, 10), torch.randn(4, 9))
    assert plain.memory.queue_ptr.item() == 8
    return message_of(pickle.dumps, criterion)


def test_copies_of_a_criterion_with_a_group():
    for message in on_ranks(2, copies):
        assert message.startswith("TypeError: a criterion that was given a process_group cannot")


class NoRoom:
    """Runs out of memory at its call number ``at``, from 0, of what it stands for."""

    def __init__(self, function, at=0):
        self.function, self.calls, self.at = function, 0, at

    def __call__(self, *arguments, **settings):
        self.calls += 1
        if self.calls > self.at:
            raise torch.OutOfMemoryError("no room")
        return self.function(*arguments, **settings)


#: What has no room, and at which call: the loss, or the write of the momentum memory between its
#: two halves.
FAILURES = {
    "fifo 2025": (fifo_functional, "relational_loss", 0),
    "fifo 2024": (fifo_functional, "relational_loss", 0),
    "momentum": (momentum_functional, "sampled_relational_loss", 0),
    "cosine": (momentum_functional, "momentum_update_", 1),
}


def run_out_of_memory(rank, name, failing):
    module, undisturbed = Distiller(**MEMORIES[name]), Distiller(**MEMORIES[name])
    for batch in range(3):
        undisturbed(*given(rank, batch))
    module(*given(rank))
    with pytest.MonkeyPatch.context() as patch:
        if rank == failing:
            functions, function, at = FAILURES[name]
            patch.setattr(functions, function, NoRoom(getattr(functions, function), at))
        message = message_of(module, *given(rank, 1))
    module(*given(rank, 2))
    return message, module.state_dict(), undisturbed.state_dict()


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("name", FAILURES)
def test_a_rank_that_fails_after_the_ranks_have_agreed(name, failing):
    """It may have missed rows: the next step begins with the memory of one that has them all."""
    found = on_ranks(2, run_out_of_memory, name, failing)
    for rank, (message, state, wanted) in enumerate(found):
        expected = "OutOfMemoryError: no room" if rank == failing else "nothing was raised"
        assert message == expected
        for key, value in state.items():
            assert torch.equal(value, wanted[key]), key


def miss_rows(rank, failing):
    module = Distiller(nce_k=30, protocol="2024", gather="shard")
    module(*given(rank))
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    every = [state]
    dist.broadcast_object_list(every, 0)
    with pytest.MonkeyPatch.context() as patch:
        if rank == failing:
            patch.setattr(partials, "loss_of_partials", NoRoom(None))
        messages = [message_of(module, *given(rank, 1))]
    messages.append(message_of(module, *given(rank, 2)))
    module.load_state_dict(every[0])
    messages.append(message_of(module, *given(rank, 1)))
    return messages


@pytest.mark.parametrize("failing", [0, 1])
def test_rows_that_only_some_ranks_of_a_shard_have_written(failing):
    """No other rank has them: the ranks go on once all have loaded a state."""
    for rank, messages in enumerate(on_ranks(2, miss_rows, failing)):
        expected = "OutOfMemoryError: no room" if rank == failing else "nothing was raised"
        assert messages[0] == expected
        written = f"{int(failing != 0) + 1} on ranks [0], {int(failing != 1) + 1} on ranks [1]"
        assert f"the number of batches written since is {written}" in messages[1]
        assert messages[2] == "nothing was raised"


def join(rank):
    messages = []
    for gather in ("keys", "none"):
        module = DDP(ignore_in_ddp(Distiller(**MEMORIES["fifo 2025"], gather=gather)))
        with module.join():
            messages.append(message_of(module, *given(rank)))
    return messages


def test_ranks_that_may_take_different_numbers_of_steps():
    for keys, none in on_ranks(2, join):
        assert keys.startswith(
            "RuntimeError: DistributedDataParallel.join() is for ranks with diff"
        )
        assert none == "nothing was raised"
