"""torch.func and forward-mode derivatives over a step: right, memory included, or refused."""

import copy

import pytest
import torch
from ranks import message_of, on_ranks
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from rrd_kernels import RRDLoss

SETTINGS = {
    "2025": {"nce_k": 32},
    "2024": {"nce_k": 32, "protocol": "2024"},
    "slots": {"nce_k": 32, "slot_momentum": 0.5},
    "momentum": {"memory_type": "momentum", "n_data": 40, "nce_k": 6},
    "cosine": {"memory_type": "momentum", "n_data": 40, "nce_k": 6, "similarity": "cosine"},
}


def problem(name, device, **options):
    """A criterion that has taken a step, and a batch."""
    settings = {"s_dim": 12, "t_dim": 20, "feat_dim": 16, "dtype": torch.float64}
    criterion = RRDLoss(**settings, device=device, **SETTINGS[name], **options)
    double = {"dtype": torch.float64, "device": device}
    columns = torch.randint(40, (6, 7), device=device)
    samples = () if name in ("2025", "2024", "slots") else (columns[:, 0].contiguous(), columns)
    criterion(torch.randn(6, 12, **double), torch.randn(6, 20, **double), *samples)
    return criterion, torch.randn(6, 12, **double), torch.randn(6, 20, **double), samples


def stepped(criterion, f_s, f_t, samples):
    """Loss, gradient and state of a step without transforms."""
    twin, f_s = copy.deepcopy(criterion), f_s.clone().requires_grad_()
    loss = twin(f_s, f_t, *samples)
    loss.backward()
    return loss.detach(), f_s.grad, twin


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "jacrev", "dual"])
def test_a_training_step(transform, name, backend, device):
    criterion, f_s, f_t, samples = problem(name, device, backend=backend)
    loss, wanted, twin = stepped(criterion, f_s, f_t, samples)
    direction = torch.randn_like(f_s)

    def step(f_s):
        return criterion(f_s, f_t, *samples)

    if transform in ("grad", "jacrev"):
        found = {"grad": grad, "jacrev": jacrev}[transform](step)(f_s)
    elif transform == "vjp":
        value, pullback = vjp(step, f_s)
        torch.testing.assert_close(value, loss)
        found = pullback(torch.ones_like(loss))[0]
    elif transform == "jvp":
        value, found = jvp(step, (f_s,), (direction,))
        torch.testing.assert_close(value, loss)
    else:
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(step(forward_ad.make_dual(f_s, direction))).tangent
    wanted = (wanted * direction).sum() if transform in ("jvp", "dual") else wanted
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(dict(criterion.state_dict()), dict(twin.state_dict()))


def test_gradients_of_the_projections(device):
    criterion, f_s, f_t, samples = problem("2025", device)
    weights = {"memory.embed_s.weight": criterion.embed_s.weight.detach().clone()}
    *_, twin = stepped(criterion, f_s, f_t, samples)
    found = grad(lambda weights: functional_call(criterion, weights, (f_s, f_t)))(weights)
    torch.testing.assert_close(found["memory.embed_s.weight"], twin.embed_s.weight.grad)
    torch.testing.assert_close(criterion.queue, twin.queue)


def test_vmap_over_students(device):
    """Of one batch of the teacher, which enters once."""
    criterion, f_s, f_t, samples = problem("2025", device)
    *_, twin = stepped(criterion, f_s, f_t, samples)
    students = torch.stack((f_s, f_s.flip(0), 2 * f_s + 1))
    found = vmap(lambda f_s: criterion(f_s, f_t))(students)
    torch.testing.assert_close(criterion.queue, twin.queue)
    wanted = torch.stack([twin(f_s, f_t, update=False) for f_s in students])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["momentum", "cosine"])
@pytest.mark.parametrize("unset", [False, True])
def test_vmap_over_whole_samples_without_a_write(unset, name, device):
    criterion, f_s, f_t, samples = problem(name, device)
    if unset:  # each sample has its own Z then
        criterion.memory.contrast.params[2:4] = -1
    state = copy.deepcopy(criterion.state_dict())
    batches = [(f_s + i, f_t * (1 + i), *(s.flip(0) if i else s for s in samples)) for i in (0, 1)]
    stacked = [torch.stack(parts) for parts in zip(*batches, strict=True)]
    found = vmap(lambda *batch: criterion(*batch, update=False))(*stacked)
    wanted = torch.stack([criterion(*batch, update=False) for batch in batches])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(dict(criterion.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_vmap_over_teachers_is_refused(name, device):
    criterion, f_s, f_t, samples = problem(name, device)
    state = copy.deepcopy(criterion.state_dict())
    with pytest.raises(RuntimeError, match=r"vmap cannot write .* call with update=False"):
        vmap(lambda f_t: criterion(f_s, f_t, *samples))(torch.stack((f_t, f_t)))
    torch.testing.assert_close(dict(criterion.state_dict()), dict(state), rtol=0, atol=0)


def test_fused_is_refused_before_anything_is_written(device):
    for name in SETTINGS:
        criterion, f_s, f_t, samples = problem(name, device, backend="fused")
        state = copy.deepcopy(criterion.state_dict())
        with pytest.raises(RuntimeError, match="backend='reference'"):
            grad(lambda f_s, c=criterion, t=f_t, s=samples: c(f_s, t, *s))(f_s)
        torch.testing.assert_close(dict(criterion.state_dict()), dict(state), rtol=0, atol=0)


def on_two_ranks(rank):
    criterion, f_s, f_t, _ = problem("2025", "cpu")
    queue = criterion.queue.clone()
    message = message_of(grad(lambda f_s: criterion(f_s, f_t)), f_s)
    assert torch.equal(criterion.queue, queue)
    return message


def test_several_ranks_refuse():
    for message in on_ranks(2, on_two_ranks):
        assert message.startswith("RuntimeError: torch.func and forward-mode derivatives work in")
