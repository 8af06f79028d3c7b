"""RelationalQueue as people use it: evaluation, schedules, compile, checkpoints, several ranks."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import on_ranks
from test_distributed import CLOSE
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from torch.utils.checkpoint import checkpoint

from rrd_kernels import RelationalQueue, RRDLoss
from rrd_kernels.distributed import ignore_in_ddp

#: By name: a preset, and settings that bring every form and order into few rows.
QUEUES = {
    "moco": (RelationalQueue.for_moco, {}),
    "seed": (RelationalQueue.for_seed, {"tau_t": 0.05}),
    "cold seed": (RelationalQueue.for_seed, {}),
    "ressl": (RelationalQueue.for_ressl, {}),
    "isd": (RelationalQueue.for_isd, {}),
    "compress": (RelationalQueue.for_compress, {}),
    "lightly": (RelationalQueue.for_lightly_train, {}),
}
DIM, SIZE = 8, 20


def make(name, size=SIZE, **settings):
    preset, own = QUEUES[name]
    return preset(DIM, size, **{**own, **settings})


def embeddings(batch=6, device="cpu", dtype=torch.float32):
    z_s, z_t = torch.randn(2, batch, DIM, device=device, dtype=dtype)
    return z_s.requires_grad_(), z_t


def state_of(queue):
    return {key: value.clone() for key, value in queue.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", QUEUES)
def test_it_has_no_parameters_and_the_published_keys(name):
    queue = make(name)
    assert not list(queue.parameters())
    assert list(queue.state_dict()) == ["queue", "queue_ptr"]


@pytest.mark.parametrize("name", QUEUES)
def test_evaluation_and_update_false_leave_the_queue_alone(name, device):
    queue = make(name).to(device)
    queue(*embeddings(device=device))
    before, (z_s, z_t) = state_of(queue), embeddings(device=device)
    losses = [queue(z_s, z_t, update=False), queue.eval()(z_s, z_t)]
    assert torch.equal(*losses)
    assert same(state_of(queue), before)
    losses[0].backward()
    assert z_s.grad.norm() > 0


def test_embeddings_may_be_normalised_already(device):
    """The loss is the same, and a normalisation before it has its own derivative."""
    z_s, z_t = embeddings(device=device, dtype=torch.float64)
    queue = make("moco", dtype=torch.float64).to(device)
    losses = [queue(z_s, z_t, update=False)]
    unit = F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)
    losses.append(queue(*unit, update=False))
    torch.testing.assert_close(*losses, rtol=1e-14, atol=0)
    grads = [torch.autograd.grad(loss, z_s)[0] for loss in losses]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)
    maps = [value[..., None, None] for value in unit]
    assert torch.equal(queue(*maps, update=False), losses[1])


def test_the_teacher_gets_no_gradient(device):
    z_s, z_t = embeddings(device=device)
    make("compress").to(device)(z_s, z_t.requires_grad_()).backward()
    assert z_t.grad is None


def test_a_relational_queue_is_an_rrd_loss_without_projections(device):
    """The same numbers from an RRDLoss whose projections change nothing, in every form."""
    identity = {"embed_s": torch.nn.Identity(), "embed_t": torch.nn.Identity()}
    form = {"own_pair": True, "divergence": "kl"}
    criterion = RRDLoss(feat_dim=DIM, nce_k=SIZE, enqueue="after", **identity, **form).to(device)
    queue = RelationalQueue(DIM, SIZE, **form).to(device)
    queue.load_state_dict(criterion.memory.state_dict())
    for _ in range(5):
        z_s, z_t = embeddings(device=device)
        assert torch.equal(criterion(z_s, z_t), queue(z_s, z_t))
    assert same(state_of(criterion.memory), state_of(queue))
    form = {"own_pair": True, "enqueue": "after"}
    hard = RRDLoss(feat_dim=DIM, nce_k=SIZE, nce_t_t=0.0, **form, **identity)
    assert hard.tau_t == 0
    assert hard.own_pair
    assert hard.divergence == "cross_entropy"


@pytest.mark.parametrize("name", ["moco", "lightly"])
def test_a_checkpoint_continues_the_training(name, device):
    queue = make(name).to(device)
    for _ in range(4):
        queue(*embeddings(device=device))
    buffer = io.BytesIO()
    torch.save(queue.state_dict(), buffer)
    buffer.seek(0)
    other = make(name).to(device)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    third = copy.deepcopy(queue)
    for _ in range(4):
        z = embeddings(device=device)
        losses = [each(*z) for each in (queue, other, third)]
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(losses[0], losses[2])
    assert same(state_of(queue), state_of(other))


@pytest.mark.parametrize("name", ["moco", "lightly"])
def test_checkpointing_enqueues_once(name, device):
    """A recomputed step that reads first would differentiate another loss, and raises."""
    queue = make(name).to(device)
    z_s, z_t = embeddings(device=device)
    loss = checkpoint(queue, z_s, z_t, use_reentrant=False)
    ptr = int(queue.queue_ptr)
    if queue.enqueue == "after":
        with pytest.raises(RuntimeError, match="recomputes a loss whose memory has changed"):
            loss.backward()
    else:
        loss.backward()
    assert int(queue.queue_ptr) == ptr


def test_a_schedule_reaches_the_hard_target_in_a_compiled_step(device):
    """Two graphs serve all values, 0 among them."""
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    queues = [make("seed", tau_t=0.1, dtype=torch.float64).to(device) for _ in range(2)]
    queues[1].load_state_dict(queues[0].state_dict())
    step = torch.compile(queues[0], backend=count, fullgraph=True)
    for tau_t in (0.1, 0.05, 0.0, 0.02, 0.0, 0.3):
        for queue in queues:
            queue.tau_t = tau_t
        z_s, z_t = embeddings(device=device, dtype=torch.float64)
        results = []
        for each in (step, queues[1]):
            loss = each(z_s, z_t)
            results.append((loss.detach(), *torch.autograd.grad(loss, z_s)))
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)
    assert len(graphs) == 2
    assert same(state_of(queues[0]), state_of(queues[1]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["moco", "lightly"])
def test_compiled_steps(name, backend, device):
    queues = [make(name).to(device) for _ in range(2)]
    queues[1].load_state_dict(queues[0].state_dict())
    step = torch.compile(queues[0], backend=backend, fullgraph=True)
    for _ in range(4):
        z_s, z_t = embeddings(device=device)
        losses = [each(z_s, z_t) for each in (step, queues[1])]
        grads = [torch.autograd.grad(loss, z_s)[0] for loss in losses]
        assert torch.equal(*losses)
        assert torch.equal(*grads)
    assert same(state_of(queues[0]), state_of(queues[1]))


@pytest.mark.parametrize("name", QUEUES)
def test_warmup_changes_nothing(name, device):
    queue = make(name).to(device)
    before = state_of(queue)
    for batch in (6, SIZE + 3) if queue.newest_first else (6,):
        queue.warmup(batch)
    assert same(state_of(queue), before)


# On ranks. Losses and averaged gradients are those of one process with the whole batch.


def student():
    torch.manual_seed(5)
    return torch.nn.Linear(5, DIM, dtype=torch.float64)


def shared(name, gather):
    torch.manual_seed(3)
    size = 10 if name == "lightly, few rows" else SIZE  # less than a batch of all ranks
    return make(name.split(",")[0], size, gather=gather, dtype=torch.float64)


def follow(module, loss_of, rank, world, queue=None):
    """Five steps with this rank's share of each batch. ``loss_of`` is the queue, which takes the
    embeddings, or with ``queue`` a whole model."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for step in range(5):
        torch.manual_seed(100 + step)
        x = torch.randn(12, 5, dtype=torch.float64).chunk(world)[rank]
        z_t = torch.randn(12, DIM, dtype=torch.float64).chunk(world)[rank]
        loss = loss_of(module(x), z_t) if queue is None else loss_of(x, z_t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    weights = [weight.detach().clone() for weight in module.parameters()]
    queue = loss_of if queue is None else queue
    rows = queue.state_dict()["queue"]
    rows = rows.full_tensor() if hasattr(rows, "full_tensor") else rows.clone()
    return torch.stack(losses), weights, rows, queue.queue_ptr % queue.nce_k


SHARED = [(n, g) for n in (*QUEUES, "lightly, few rows") for g in ("keys", "shard")]


def follow_all(rank):
    world = dist.get_world_size()
    return {
        (name, gather): follow(DDP(student()), shared(name, gather), rank, world)
        for name, gather in SHARED
    }


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_train_as_one_process_does(world):
    alone = {name: follow(student(), shared(name, "keys"), 0, 1) for name, _ in SHARED}
    ranks = on_ranks(world, follow_all)
    for name, gather in SHARED:
        losses = torch.stack([rank[name, gather][0] for rank in ranks]).mean(0)
        wanted = alone[name]
        torch.testing.assert_close(losses, wanted[0], **CLOSE)
        for rank in ranks:
            torch.testing.assert_close(rank[name, gather][1:], wanted[1:], **CLOSE)


class Model(torch.nn.Module):
    """As in docs/methods.md: the queue is a part of the model, whose forward returns the loss."""

    def __init__(self, name, gather):
        super().__init__()
        self.student, self.queue = student(), shared(name, gather)

    def forward(self, x, z_t):
        return self.queue(self.student(x), z_t)


def follow_inside(rank):
    world = dist.get_world_size()
    found = {}
    for name in ("moco", "lightly"):
        model = Model(name, "keys")
        wrapped = DDP(ignore_in_ddp(model))

        def loss(x, z_t, wrapped=wrapped):
            return wrapped(x, z_t)

        found[name] = follow(model.student, loss, rank, world, model.queue)
    unmarked = DDP(Model("lightly", "none"))
    try:
        unmarked(torch.randn(3, 5, dtype=torch.float64), torch.randn(3, DIM, dtype=torch.float64))
    except RuntimeError as error:
        return found, str(error)
    return found, "nothing was raised"


def test_a_queue_inside_a_model_under_ddp():
    alone = {name: follow(student(), shared(name, "keys"), 0, 1) for name in ("moco", "lightly")}
    for found, message in on_ranks(2, follow_inside):
        for name, wanted in alone.items():
            torch.testing.assert_close(found[name][1:], wanted[1:], **CLOSE)
        assert "ignore_in_ddp" in message


def follow_own(rank):
    return follow(DDP(student()), shared("lightly", "none"), rank, dist.get_world_size())


def test_each_rank_may_have_a_queue_of_its_own():
    """The rows are those of the rank's own batches."""
    for rank, (*_, rows, ptr) in enumerate(on_ranks(2, follow_own)):
        assert int(ptr) == -30 % SIZE
        torch.manual_seed(104)
        newest = torch.randn(12, 5, dtype=torch.float64)  # x, which is drawn first
        newest = torch.randn(12, DIM, dtype=torch.float64).chunk(2)[rank]
        first = int(ptr)
        torch.testing.assert_close(rows[first : first + 6], F.normalize(newest, dim=1), **CLOSE)


def disagree(rank):
    queue = RelationalQueue(DIM, SIZE, own_pair=rank == 0)
    try:
        queue(*embeddings(3))
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def test_ranks_compare_the_form():
    for message in on_ranks(2, disagree):
        assert "own_pair is True on ranks [0], False on ranks [1]" in message
