"""relational_step_: the enqueue and the loss, in one."""

import pytest
import torch
from emulated import EMULATED
from problems import FORMS, LOSSES, draw

from rrd_kernels.functional import enqueue_, relational_loss, relational_step_

BACKENDS = ["auto", "reference"]
ORDERS = ["before", "after"]


def pointer(value, device):
    return torch.tensor([value], dtype=torch.int64, device=device)


def one_after_the_other(
    z_s, z_t, memory, ptr, *, enqueue, newest_first, momentum, backend, **options
):
    write = {"newest_first": newest_first, "momentum": momentum, "backend": backend}
    if enqueue == "before":
        enqueue_(memory, ptr, z_t, **write)
    loss = relational_loss(z_s, z_t, memory, backend=backend, **options)
    if enqueue == "after":
        enqueue_(memory, ptr, z_t, **write)
    return loss


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("enqueue", "form"), [("before", "cross-entropy"), ("after", "own pair, kl")]
)
def test_equals_the_two_calls(enqueue, form, reduction, momentum, dtype, backend, device):
    """Over the wrap, in both directions; on a CPU, where it is composed of the two, bit for bit."""
    exactly = {"rtol": 0, "atol": 0} if device.type == "cpu" else {}
    options = {"enqueue": enqueue, "momentum": momentum, "reduction": reduction, **FORMS[form]}
    options["newest_first"] = momentum > 0
    states = [(draw(7, 8, 24, dtype, device).memory, pointer(20, device))]
    states.append(tuple(value.clone() for value in states[0]))
    for _ in range(4):
        problem = draw(7, 8, 24, dtype, device)
        results = []
        for function, state in zip((relational_step_, one_after_the_other), states, strict=True):
            z_s = problem.z_s.clone().requires_grad_()
            loss = function(z_s, problem.z_t, *state, backend=backend, unit_memory=True, **options)
            loss.sum().backward()
            results.append((loss, z_s.grad, *state))
        for value, wanted in zip(*results, strict=True):
            torch.testing.assert_close(value, wanted, **exactly)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_reductions_are_of_the_losses_that_none_returns(loss, precision, device):
    batch = 40 if EMULATED else 300
    problem = draw(batch, 16, 400, device=device)

    def compute(reduction):
        z_s = problem.z_s.detach().double().requires_grad_()
        value = loss(z_s, problem.z_t, problem.memory, precision=precision, reduction=reduction)
        value.sum().backward()
        return value, z_s.grad

    losses, grads = compute("none")
    # All terms are positive: a sum over a tree of 300 is off by some nine roundings at most. A
    # gradient's are those of the length's inverse, of 1 / B and of their products.
    accuracy = 8 * torch.finfo(losses.dtype).eps
    close = {"rtol": accuracy, "atol": 0}
    for reduction, divisor in (("sum", 1), ("mean", batch)):
        reduced, grad = compute(reduction)
        torch.testing.assert_close(reduced.double(), losses.double().sum() / divisor, **close)
        torch.testing.assert_close(grad, grads / divisor, **close)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("enqueue", ORDERS)
def test_a_batch_as_large_as_the_memory(enqueue, backend, device):
    problem = draw(16, 8, 16, device=device)
    ptr = pointer(3, device)
    z_s = problem.z_s.requires_grad_()
    options = {"enqueue": enqueue, "backend": backend}
    relational_step_(z_s, problem.z_t, problem.memory, ptr, **options).backward()
    rows = torch.nn.functional.normalize(problem.z_t, dim=1)
    torch.testing.assert_close(problem.memory, rows.roll(3, dims=0))
    assert ptr.item() == 3
    assert z_s.grad.isfinite().all()


@pytest.mark.parametrize("enqueue", ORDERS)
def test_row_that_is_not_finite(enqueue, device):
    problem = draw(4, 8, 16, device=device)
    problem.z_t[1, 2] = float("nan")
    ptr = pointer(14, device)
    step = (problem.z_s, problem.z_t, problem.memory, ptr)
    losses = relational_step_(*step, enqueue=enqueue, reduction="none")
    assert losses.isnan().tolist() == [False, True, False, False]
    assert problem.memory.isfinite().all()
    assert ptr.item() == 2


@pytest.mark.parametrize("enqueue", ORDERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd(mode, enqueue, device):
    problem = draw(4, 8, 16, device=device)
    state, other = ((problem.memory.clone(), pointer(14, device)) for _ in range(2))
    z_s = problem.z_s.requires_grad_()
    wanted = relational_step_(z_s, problem.z_t, *state, enqueue=enqueue)
    with mode():
        loss = relational_step_(z_s, problem.z_t, *other, enqueue=enqueue).clone()
    assert not loss.requires_grad
    torch.testing.assert_close(loss, wanted.detach())
    for value, expected in zip(other, state, strict=True):
        assert torch.equal(value, expected)
