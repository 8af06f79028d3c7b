"""What docs/packages/modelopt.md says of NVIDIA ModelOpt."""

import pytest
import torch
from ranks import message_of, on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rrd_kernels import CRDLoss, RelationalQueue, RRDLoss
from rrd_kernels.distributed import ignore_in_ddp

mtd = pytest.importorskip("modelopt.torch.distill")
mto = pytest.importorskip("modelopt.torch.opt")

SIZES = {"s_dim": 12, "t_dim": 20, "feat_dim": 16, "nce_k": 48, "dtype": torch.float64}
FINE = "nothing was raised"


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Linear(8, width, dtype=torch.float64)
        self.head = nn.Linear(width, 4, dtype=torch.float64)

    def forward(self, images):
        return self.head(self.body(images))


def convert(criteria, weight=0.5):
    config = {
        "teacher_model": Network(20),
        "criterion": criteria,
        "loss_balancer": mtd.StaticLossBalancer(weight),
    }
    return mtd.convert(Network(12), mode=[("kd_loss", config)])


def convert_one(criterion):
    return convert({("body", "body"): criterion})


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 8, generator=generator, dtype=torch.float64)


def loss_of(model, forward, images, **indices):
    own = forward(images).square().mean()
    return model.compute_kd_loss(student_loss=own, **indices)


def test_the_criterion_trains_and_is_reached():
    criterion = RRDLoss(**SIZES)
    model = convert_one(criterion)
    assert model.loss_modules[0] is criterion  # no copy
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert any(weight is criterion.embed_s.weight for weight in trained)
    model.train()
    loss_of(model, model, batch()).backward()
    assert criterion.embed_s.weight.grad is not None
    assert criterion.queue_ptr.item() == 8
    model.eval()
    loss_of(model, model, batch())
    assert criterion.queue_ptr.item() == 8


def test_the_loss_is_that_of_the_layers_outputs():
    criterion = RRDLoss(**SIZES)
    model = convert_one(criterion)
    model.eval()
    loss = loss_of(model, model, batch())
    f_s, f_t = model.body(batch()), model.teacher_model.body(batch())
    wanted = 0.5 * criterion(f_s, f_t) + 0.5 * model.head(f_s).square().mean()
    # The same operations, on equal inputs.
    torch.testing.assert_close(loss, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CRDLoss(**SIZES, n_data=50),
        lambda: RRDLoss(**SIZES, n_data=50, memory_type="momentum"),
    ],
    ids=["CRDLoss", "RRDLoss"],
)
def test_indices_reach_a_momentum_memory(make):
    criterion = make()
    model = convert_one(criterion)
    model.train()
    rows = next(b for name, b in criterion.named_buffers() if name.endswith("memory_v2"))
    before = rows.clone()
    loss_of(model, model, batch(), idx=torch.arange(10, 18)).backward()
    moved = (rows != before).any(1).nonzero().flatten()
    assert moved.tolist() == list(range(10, 18))


def test_a_checkpoint_resumes(tmp_path):
    criterion = RRDLoss(**SIZES)
    model = convert_one(criterion)
    model.train()
    loss_of(model, model, batch())
    mto.save(model, tmp_path / "model.pth")
    with pytest.raises(RuntimeError, match="_loss_modules"):
        mto.restore(Network(12), tmp_path / "model.pth")
    saved = torch.load(tmp_path / "model.pth")["model_state_dict"]
    assert not any(name.startswith("_teacher_model") for name in saved)
    resumed = RRDLoss(**SIZES)
    convert_one(resumed).load_state_dict(saved)
    for name, value in criterion.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # A student's state loads too, and leaves the criterion alone.
    student = mtd.export(model).state_dict()
    assert not any(name.startswith("_loss_modules") for name in student)
    fresh = RRDLoss(**SIZES)
    convert_one(fresh).load_state_dict(student)
    assert fresh.queue_ptr.item() == 0


def two():
    return {("body", "body"): RRDLoss(**SIZES), ("head", "head"): RelationalQueue(4, 48)}


def register(model, criteria):
    """The two lines of the page."""
    del model.loss_modules[:]
    model.loss_modules.extend(criteria.values())


def test_the_order_of_two_criteria_is_arbitrary_until_they_are_registered():
    made = []  # kept, so that each lies elsewhere in memory
    for _ in range(60):
        pair = {("body", "body"): RRDLoss(**SIZES), ("", ""): RRDLoss(s_dim=4, t_dim=4, nce_k=16)}
        made.append((convert(pair, [0.5, 0.4]), pair))
    orders = [[*model.loss_modules] == [*pair.values()] for model, pair in made]
    assert set(orders) == {True, False}
    model, pair = made[orders.index(False)]
    register(model, pair)
    assert [*model.loss_modules] == [*pair.values()]


def test_a_criterion_without_parameters_is_reached_once_it_is_registered():
    criteria = two()
    queue = criteria["head", "head"]
    model = convert(criteria, [0.5, 0.4])
    assert queue not in model.loss_modules
    model.eval()
    assert queue.training
    assert not any("loss_modules.1" in name for name in model.state_dict())
    register(model, criteria)
    model.train()
    loss_of(model, model, batch()).backward()
    assert queue.queue_ptr.item() == 8
    model.eval()
    loss_of(model, model, batch())
    assert queue.queue_ptr.item() == 8
    assert torch.equal(model.state_dict()["_loss_modules.1.queue"], queue.queue)
    again = two()
    other = convert(again, [0.5, 0.4])
    register(other, again)
    other.load_state_dict(model.state_dict())
    assert torch.equal(again["head", "head"].queue, queue.queue)
    student = mtd.export(model)
    assert list(student.state_dict()) == list(Network(12).state_dict())


def train(rank, world, gather="keys", ignores=True, **options):
    """What is raised, and the state, after steps of all batches on ``world`` ranks."""
    torch.manual_seed(3)
    model = convert_one(RRDLoss(**SIZES, gather=gather))
    forward = model
    if world > 1:
        forward = DistributedDataParallel(ignore_in_ddp(model) if ignores else model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()

    def steps():
        for step in range(3):
            images = torch.cat([batch(2 * step), batch(2 * step + 1)])
            optimizer.zero_grad()
            loss_of(model, forward, images.chunk(world)[rank]).backward()
            optimizer.step()

    message = message_of(steps)
    criterion = model.loss_modules[0]
    state = {
        "body": model.body.weight,
        "embed_s": criterion.embed_s.weight,
        "queue": criterion.queue,
    }
    return message, {name: tensor.detach().clone() for name, tensor in state.items()}


def under_ddp(rank):
    return {
        "keys": train(rank, 2),
        "none": train(rank, 2, "none"),
        "none, copied": train(rank, 2, "none", ignores=False),
        "shard": train(rank, 2, "shard"),
        "shard, copied": train(rank, 2, "shard", ignores=False),
        "unused": train(rank, 2, find_unused_parameters=True),
    }


def test_ddp():
    ranks = on_ranks(2, under_ddp)
    _, one = train(0, 1)

    def of(case):
        messages, states = zip(*(found[case] for found in ranks), strict=True)
        return messages, states

    def close(a, b):
        # float64 rounding of sums of fewer than 1000 terms, over three steps.
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)

    messages, states = of("keys")
    assert messages == (FINE, FINE)
    for state in states:  # two ranks train as one process
        close(state, one)
    messages, states = of("shard")
    assert messages == (FINE, FINE)
    close(torch.cat([state["queue"] for state in states]), one["queue"])
    messages, states = of("none")
    assert messages == (FINE, FINE)
    assert not torch.equal(states[0]["queue"][:16], states[1]["queue"][:16])
    # Without ignore_in_ddp nothing warns, and rank 0's rows lie on every rank.
    messages, states = of("none, copied")
    assert messages == (FINE, FINE)
    assert torch.equal(states[0]["queue"][:16], states[1]["queue"][:16])
    messages, states = of("shard, copied")
    assert messages == (FINE, FINE)
    assert not torch.allclose(torch.cat([state["queue"] for state in states]), one["queue"])
    messages, _ = of("unused")
    assert all("mark a variable ready only once" in message for message in messages)
