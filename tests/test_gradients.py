"""The autograd rule: one derivative, right; never a second one, silently wrong."""

import dataclasses

import pytest
import torch
from problems import FORMS, LOSSES, draw

from rrd_kernels.functional import enqueue_, relational_step_


@pytest.fixture(params=LOSSES)
def loss_of(request):
    """The loss of a problem as a function of z_s, by each operator that has a derivative."""

    def function(problem, z_s, **options):
        return LOSSES[request.param](
            z_s,
            problem.z_t,
            problem.memory,
            **problem.terms,
            **options,
        )

    return function


@pytest.mark.parametrize("unit_memory", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(loss_of, form, reduction, unit_memory):
    terms = {"tau_s": 0.3, "tau_t": 0.2} | FORMS[form]
    problem = draw(5, 7, 11, torch.float64, **terms)
    assert torch.autograd.gradcheck(
        lambda z_s: loss_of(problem, z_s, reduction=reduction, unit_memory=unit_memory),
        problem.z_s.requires_grad_(),
    )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_gradient_comes_back_in_the_input_dtype(loss_of, dtype, device):
    problem = draw(4, 8, 16, dtype, device)
    loss = loss_of(problem, problem.z_s.requires_grad_())
    loss.backward()
    assert problem.z_s.grad.dtype == dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_teacher_and_memory_get_no_gradient(loss_of, device):
    problem = draw(4, 8, 16, device=device)
    problem.z_t.requires_grad_()
    problem.memory.requires_grad_()
    loss_of(problem, problem.z_s.requires_grad_()).backward()
    assert problem.z_s.grad is not None
    assert problem.z_t.grad is None
    assert problem.memory.grad is None
    assert not loss_of(problem, problem.z_s.detach()).requires_grad


def test_double_backward_raises_and_the_reference_has_it(loss_of, device):
    problem = draw(4, 8, 16, torch.float64, device)
    z_s = problem.z_s.requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(problem, z_s, backend="fused"), z_s, create_graph=True)
    # A term beside the gradient's own, so that a lost graph would give a number and no error.
    penalty = grad.square().sum() + z_s.sum()
    with pytest.raises(NotImplementedError, match="no second derivative"):
        penalty.backward()
    (grad,) = torch.autograd.grad(
        loss_of(problem, z_s, backend="reference"), z_s, create_graph=True
    )
    grad.square().sum().backward()
    assert z_s.grad.norm() > 0


def test_forward_mode_is_the_references(loss_of, device):
    """The memory and z_t are constants in it too."""
    problem = draw(4, 8, 16, torch.float64, device)
    z_s = problem.z_s.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(problem, z_s), z_s)
    tangent = torch.randn_like(problem.z_s)
    _, found = torch.func.jvp(lambda z_s: loss_of(problem, z_s), (problem.z_s,), (tangent,))
    torch.testing.assert_close(found, (gradient * tangent).sum())
    with pytest.raises(RuntimeError, match="need backend='reference'"):
        torch.func.jvp(
            lambda z_s: loss_of(problem, z_s, backend="fused"), (problem.z_s,), (tangent,)
        )
    with torch.autograd.forward_ad.dual_level():
        for name in ("z_s", "z_t", "memory"):
            value = getattr(problem, name)
            dual = torch.autograd.forward_ad.make_dual(value, torch.ones_like(value))
            replaced = dataclasses.replace(problem, **{name: dual})
            found = torch.autograd.forward_ad.unpack_dual(loss_of(replaced, replaced.z_s)).tangent
            if name == "z_s":
                torch.testing.assert_close(found, gradient.sum())
            else:
                assert found is None or found == 0


def test_forward_mode_of_an_operator_raises(device):
    """For those who call it directly."""
    problem = draw(4, 8, 16, device=device)
    with torch.autograd.forward_ad.dual_level():
        for name in ("z_s", "z_t", "memory"):
            value = getattr(problem, name)
            dual = torch.autograd.forward_ad.make_dual(value, torch.ones_like(value))
            given = dataclasses.replace(problem, **{name: dual})
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                torch.ops.rrd_kernels.relational_loss(
                    given.z_s, given.z_t, given.memory, 0.1, 0.02, False, False, False, None, 1
                )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_retained_graph_gives_the_same_gradient_twice(loss_of, backend, device):
    problem = draw(4, 8, 16, device=device)
    z_s = problem.z_s.requires_grad_()
    loss = loss_of(problem, z_s, backend=backend)
    (first,) = torch.autograd.grad(loss, z_s, retain_graph=True)
    (second,) = torch.autograd.grad(loss, z_s, grad_outputs=torch.tensor(3.0, device=device))
    torch.testing.assert_close(second, 3 * first)
    assert torch.equal(torch.autograd.grad(loss_of(problem, z_s, backend=backend), z_s)[0], first)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_memory_overwritten_between_forward_and_backward(loss_of, backend, device):
    problem = draw(6, 8, 16, device=device)
    z_s = problem.z_s.requires_grad_()
    (wanted,) = torch.autograd.grad(loss_of(problem, z_s, backend=backend), z_s)
    loss = loss_of(problem, z_s, backend=backend)
    ptr = torch.zeros(1, dtype=torch.int64, device=device)
    enqueue_(problem.memory, ptr, torch.randn(16, 8, device=device), backend=backend)
    (grad,) = torch.autograd.grad(loss, z_s)
    assert torch.equal(grad, wanted)


def test_any_strides_of_grad_output(loss_of, device):
    problem = draw(6, 8, 16, device=device)
    z_s = problem.z_s.requires_grad_()

    def grad_for(weights):
        losses = loss_of(problem, z_s, reduction="none")
        return torch.autograd.grad(losses, z_s, grad_outputs=weights)[0]

    weights = torch.randn(12, device=device)[::2]
    assert torch.equal(grad_for(weights), grad_for(weights.contiguous()))
    expanded = torch.tensor(2.0, device=device).expand(6)
    assert torch.equal(grad_for(expanded), grad_for(torch.full((6,), 2.0, device=device)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_of_grad_outputs(loss_of, dtype, device):
    """vmap over backward, as torch.autograd.functional.jacobian(vectorize=True) has it."""
    problem = draw(4, 8, 16, dtype, device)
    losses = loss_of(problem, problem.z_s.requires_grad_(), reduction="none")

    def grad_for(weights, **options):
        return torch.autograd.grad(losses, problem.z_s, weights, retain_graph=True, **options)[0]

    weights = torch.randn(3, 4, device=device)
    wanted = torch.stack([grad_for(row) for row in weights])
    assert torch.equal(grad_for(weights, is_grads_batched=True), wanted)


@pytest.mark.parametrize(
    "write",
    [enqueue_, lambda memory, ptr, keys: relational_step_(keys, keys, memory, ptr)],
    ids=["enqueue", "step"],
)
@pytest.mark.parametrize("kept", ["memory", "ptr"])
def test_autograd_is_told_what_was_written(kept, write, device):
    memory = torch.zeros(4, 3, device=device)
    ptr = torch.zeros(1, dtype=torch.int64, device=device)
    weight = torch.ones(1, requires_grad=True, device=device)
    product = ((memory if kept == "memory" else ptr) * weight).sum()  # saved for this gradient
    write(memory, ptr, torch.randn(2, 3, device=device, requires_grad=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
