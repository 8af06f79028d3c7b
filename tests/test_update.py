"""A batch enters the memory once: update=False, and activation checkpointing."""

import copy

import pytest
import torch
from distillers import MEMORIES, Distiller, batches, share_of
from ranks import message_of, on_ranks
from test_distributed import CLOSE
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from torch.utils.checkpoint import checkpoint

from rrd_kernels.distributed import ignore_in_ddp
from rrd_kernels.functional import relational_step_


def same_state(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("name", MEMORIES)
def test_without_an_update_nothing_changes(name):
    module, batch = Distiller(**MEMORIES[name]), batches()[0]
    before = copy.deepcopy(module.state_dict())
    module(*batch, update=False).backward()
    assert same_state(before, module.state_dict())
    assert module.student[0].weight.grad.norm() > 0
    module(*batch)
    assert not same_state(before, module.state_dict())


def test_a_second_forward_of_a_batch():
    """With its rows in the memory already, its loss is the one that the first call returned."""
    module, batch = Distiller(**MEMORIES["fifo 2025"]), batches()[0]
    first = module(*batch)
    assert module(*batch, update=False) == first
    assert module.criterion.memory.queue_ptr.item() == 12


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["fifo 2025", "fifo slots"])
def test_checkpointing_enqueues_once(name, use_reentrant):
    module, twin = Distiller(**MEMORIES[name]), Distiller(**MEMORIES[name])
    for x, *others in batches()[:3]:
        wanted = twin(x, *others)
        wanted.backward()
        loss = checkpoint(module, x.requires_grad_(), *others, use_reentrant=use_reentrant)
        # Without a gradient, as a reentrant one begins, the loss is summed in another order.
        torch.testing.assert_close(loss, wanted, **CLOSE)
        loss.backward()
        torch.testing.assert_close(gradients(module), gradients(twin), rtol=0, atol=0)
    assert same_state(module.state_dict(), twin.state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["fifo 2024", "momentum"])
def test_checkpointing_what_changes_afterwards(name, use_reentrant):
    """The loss is of the memory as it was, which a recomputation would not find any more."""
    module = Distiller(**MEMORIES[name])
    x, *others = batches()[0]
    loss = checkpoint(module, x.requires_grad_(), *others, use_reentrant=use_reentrant)
    after = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match=r"whose memory has changed since.*update=False"):
        loss.backward()
    assert same_state(after, module.state_dict())

    def without(*batch):
        return module(*batch, update=False)

    loss = checkpoint(without, x, *others, use_reentrant=use_reentrant)
    loss.backward()
    assert same_state(after, module.state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("second", ["checkpointed", "plain"])
def test_a_second_batch_before_the_backward_of_a_checkpoint(second, use_reentrant):
    """The memory has gone on since the first of them."""
    module = Distiller(**MEMORIES["fifo 2025"])

    def loss_of(batch):
        x, *others = batch
        return checkpoint(module, x.requires_grad_(), *others, use_reentrant=use_reentrant)

    total = loss_of(batches()[0])
    total = total + (loss_of if second == "checkpointed" else lambda b: module(*b))(batches()[1])
    with pytest.raises(RuntimeError, match=r"changed since.*each forward needs its one backward"):
        total.backward()
    loss_of(batches()[2]).backward()  # and goes on


@pytest.fixture
def fresh_dynamo():
    torch.compiler.reset()
    # The deterministic mode of the other tests would fill Inductor's buffers at every step.
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
# Compiling takes seconds; CRD's step is the momentum memory's.
@pytest.mark.parametrize("name", [name for name in MEMORIES if name != "crd"])
def test_a_compiled_criterion_inside_a_checkpoint(name, backend, use_reentrant):
    """Where Python does not run, the operators see the recomputation."""
    module, twin = Distiller(**MEMORIES[name]), Distiller(**MEMORIES[name])
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for x, *others in batches()[:3]:
        wanted = twin(x, *others)
        wanted.backward()
        loss = checkpoint(compiled, x.requires_grad_(), *others, use_reentrant=use_reentrant)
        torch.testing.assert_close(loss, wanted, **CLOSE)
        after = copy.deepcopy(module.state_dict())
        torch.testing.assert_close(after, twin.state_dict(), **CLOSE)
        if name in ("fifo 2025", "fifo slots"):
            loss.backward()
            torch.testing.assert_close(gradients(module), gradients(twin), **CLOSE)
        else:
            with pytest.raises(RuntimeError, match=r"whose memory has changed since.*update=False"):
                loss.backward()
        assert same_state(after, module.state_dict())


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_functional_step_inside_a_checkpoint(backend):
    z_s, z_t = torch.randn(2, 4, 8, dtype=torch.float64)
    rows = torch.randn(16, 8, dtype=torch.float64)
    for enqueue in ("before", "after"):
        memory, ptr = rows.clone(), torch.tensor([14])

        def step(z_s, memory=memory, ptr=ptr, enqueue=enqueue):
            return relational_step_(z_s, z_t, memory, ptr, enqueue=enqueue, backend=backend)

        loss = checkpoint(step, leaf := z_s.clone().requires_grad_(), use_reentrant=False)
        after = memory.clone()
        if enqueue == "before":
            loss.backward()
            assert leaf.grad.norm() > 0
        else:
            with pytest.raises(RuntimeError, match="whose memory has changed since"):
                loss.backward()
        assert ptr.item() == (14 + 4) % 16
        assert torch.equal(memory, after)


def checkpointed(rank, use_reentrant):
    results = []
    for kind in (True, False):
        plain = Distiller(**MEMORIES["fifo 2025"])
        module = DDP(ignore_in_ddp(plain))
        for batch in batches()[:3]:
            x, *others = share_of(batch, rank, [8, 4])
            if kind:
                inside = checkpoint_inside(plain, use_reentrant)
                loss = module_with(module, inside, x.requires_grad_(), *others)
            else:
                loss = module(x, *others)
            loss.backward()
        results.append((gradients(plain), plain.state_dict()))
    return results


def checkpoint_inside(plain, use_reentrant):
    """The module's own forward, checkpointed, as models do it inside DDP."""
    forward = type(plain).forward
    return lambda *batch: checkpoint(forward, plain, *batch, use_reentrant=use_reentrant)


def module_with(module, forward, *batch):
    module.module.forward = forward
    try:
        return module(*batch)
    finally:
        del module.module.forward


def compiled_and_checkpointed(rank, gather, use_reentrant):
    torch.use_deterministic_algorithms(False)
    plain, eager = (Distiller(**MEMORIES["fifo 2025"], gather=gather) for _ in range(2))
    compiled = torch.compile(plain, backend="aot_eager")
    for batch in batches()[:3]:
        x, *others = share_of(batch, rank, [6, 6])
        eager(x, *others).backward()
        checkpoint(compiled, x.requires_grad_(), *others, use_reentrant=use_reentrant).backward()
    later = Distiller(**MEMORIES["fifo 2024"])
    compiled = torch.compile(later, backend="aot_eager")
    loss = checkpoint(compiled, x, *others, use_reentrant=use_reentrant)
    found = [(gradients(module), dict(module.named_buffers())) for module in (plain, eager)]
    return *found, message_of(loss.backward)


@pytest.mark.parametrize(
    ("gather", "use_reentrant"),
    [
        ("keys", True),
        ("shard", False),
        pytest.param("keys", False, marks=pytest.mark.long),
        pytest.param("shard", True, marks=pytest.mark.long),
    ],
)
def test_compiled_and_checkpointed_on_several_ranks(gather, use_reentrant):
    for mine, wanted, message in on_ranks(2, compiled_and_checkpointed, gather, use_reentrant):
        torch.testing.assert_close(mine, wanted, **CLOSE)
        assert "whose memory has changed since" in message


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_under_ddp(use_reentrant):
    for with_checkpoint, without in on_ranks(2, checkpointed, use_reentrant):
        torch.testing.assert_close(with_checkpoint, without, **CLOSE)
