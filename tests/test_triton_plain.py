"""What the GPU kernels leave to the reference, called directly: right whole and in chunks."""

import dataclasses

import contrastive_problems
import momentum_problems
import pytest
import torch
from momentum_problems import SIMILARITIES, within
from problems import FORMS, draw, tolerance

pytest.importorskip("triton")

from rrd_kernels import reference
from rrd_kernels.triton.common import operators as common
from rrd_kernels.triton.fifo import operators as fifo_operators
from rrd_kernels.triton.fifo.launches import FifoSettings
from rrd_kernels.triton.momentum import operators as momentum_operators
from rrd_kernels.triton.momentum.contrastive import ContrastiveSettings
from rrd_kernels.triton.momentum.launches import MomentumInputs, MomentumSettings

#: Products, and widths: what has no kernels for one reason or the other.
CASES = [("float64", 20), ("float32", 4100)]
DTYPE = {"float64": torch.float64, "float32": torch.float32}
ZERO, HUGE = 1, 2

cases = pytest.mark.parametrize(("precision", "dim"), CASES)
similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


def with_special_rows(problem, precision):
    """A row of zeros, and where products are float64 one whose squares float32 does not hold."""
    for z in (problem.z_s, problem.z_t):
        z[ZERO] = 0
        z[HUGE] *= 1e30 if precision == "float64" else 1
    return problem


def fifo(precision, dim, device):
    return with_special_rows(draw(7, dim, 33, device=device), precision)


def loss_and_gradient(problem, precision, reduction=0, need_grad=True):
    taus, kl = (problem.tau_s, problem.tau_t), problem.divergence == "kl"
    settings = FifoSettings(*taus, False, problem.own_pair, kl, precision, reduction, need_grad)
    return fifo_operators.plain_forward(problem.z_s, problem.z_t, problem.memory, settings)


def sampled(precision, dim, similarity, device):
    problem = momentum_problems.draw(7, 9, 13, dim, similarity, device=device)
    return with_special_rows(problem, precision)


def sampled_loss_and_gradient(problem, precision, reduction=0, need_grad=True):
    tensors = [getattr(problem, name) for name in MomentumInputs._fields]
    taus = (problem.tau_s, problem.tau_t, problem.nce_t)
    settings = MomentumSettings(*taus, precision, reduction, "auto", need_grad)
    return momentum_operators.plain_forward(MomentumInputs(*tensors), settings)


def contrastive(precision, dim, device):
    return with_special_rows(contrastive_problems.draw(7, 9, 13, dim, device=device), precision)


def contrastive_loss_and_gradients(problem, precision, reduction=0, need_grad=True):
    inputs = MomentumInputs(*problem.tensors)
    settings = ContrastiveSettings(0.07, precision, reduction, "auto", need_grad, need_grad)
    return momentum_operators.plain_contrastive_forward(inputs, settings)


def chunks_of(monkeypatch, name, elements):
    """How many samples the reference's function is given each time, for so many at once."""
    found, original = [], getattr(reference, name)

    def recorded(z_s, *arguments, **options):
        found.append(z_s.shape[0])
        return original(z_s, *arguments, **options)

    monkeypatch.setattr(reference, name, recorded)
    monkeypatch.setattr(common, "BATCH_ELEMENTS", elements)
    return found


@pytest.mark.parametrize(("rows", "chunks"), [(100, [7]), (2.5, [2, 2, 2, 1]), (0.5, [1] * 7)])
@cases
def test_against_float64(precision, dim, rows, chunks, device, monkeypatch):
    problem = fifo(precision, dim, device)
    found = chunks_of(monkeypatch, "relational_partials", int(rows * 33))
    pairs = zip(
        loss_and_gradient(problem, precision),
        problem.float64(),
        tolerance(problem, precision),
        strict=True,
    )
    assert found == chunks
    for value, exact, bound in pairs:
        assert value.dtype == DTYPE[precision]
        error = (value.double() - exact).abs()
        assert ((error if error.dim() == 1 else error.norm(dim=1)) <= bound).all()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_against_float64(form, device):
    problem = draw(7, 20, 33, torch.float64, device, **FORMS[form])
    loss, grad = loss_and_gradient(problem, "float64")
    exact, bounds = problem.float64(), tolerance(problem, "float64")
    assert ((loss - exact[0]).abs() <= bounds[0]).all()
    assert ((grad - exact[1]).norm(dim=1) <= bounds[1]).all()
    alone, _ = loss_and_gradient(problem, "float64", need_grad=False)
    assert torch.equal(alone, loss)


@pytest.mark.parametrize(("rows", "chunks"), [(100, [7]), (2.5, [2, 2, 2, 1]), (0.5, [1] * 7)])
@similarity
@cases
def test_sampled_against_float64(precision, dim, similarity, rows, chunks, device, monkeypatch):
    problem = sampled(precision, dim, similarity, device)
    found = chunks_of(monkeypatch, "sampled_logits", int(rows * 9 * dim))
    loss, grad = sampled_loss_and_gradient(problem, precision)
    assert found == chunks
    assert loss.dtype == grad.dtype == DTYPE[precision]
    assert within(problem, (loss, grad), precision)


@pytest.mark.parametrize(("rows", "chunks"), [(100, [7]), (2.5, [2, 2, 2, 1])])
@cases
def test_contrastive_against_float64(precision, dim, rows, chunks, device, monkeypatch):
    problem = contrastive(precision, dim, device)
    found = chunks_of(monkeypatch, "contrastive_logits", int(rows * 9 * dim))
    results = contrastive_loss_and_gradients(problem, precision)
    assert found == chunks
    assert {value.dtype for value in results} == {DTYPE[precision]}
    assert contrastive_problems.within(problem, results, precision)


@pytest.mark.parametrize("column", [0, 5])
def test_a_column_that_is_not_there(column, device):
    problem = contrastive("float64", 20, device)
    wanted = contrastive_loss_and_gradients(problem, "float64")
    problem.contrast_idx[3, column] = 13
    others = [0, 1, 2, 4, 5, 6]
    results = contrastive_loss_and_gradients(problem, "float64")
    for value, expected in zip(results, wanted, strict=True):
        assert value[3].isnan().all()
        assert torch.equal(value[others], expected[others])


@similarity
@pytest.mark.parametrize("wrong", [-1, 13, 2**62])
def test_a_row_that_is_not_there(wrong, similarity, device):
    problem = sampled("float64", 20, similarity, device)
    wanted = sampled_loss_and_gradient(problem, "float64")
    problem.contrast_idx[3, 5] = wrong
    others = [0, 1, 2, 4, 5, 6]
    for value, expected in zip(sampled_loss_and_gradient(problem, "float64"), wanted, strict=True):
        assert value[3].isnan().all()
        assert torch.equal(value[others], expected[others])


def on_fifo(precision, device):
    problem = fifo(precision, 20, device)
    return lambda *options: loss_and_gradient(problem, precision, *options)


def on_sampled(precision, device):
    problem = sampled(precision, 20, "exponential", device)
    return lambda *options: sampled_loss_and_gradient(problem, precision, *options)


def on_contrastive(precision, device):
    problem = contrastive(precision, 20, device)
    return lambda *options: contrastive_loss_and_gradients(problem, precision, *options)


every = pytest.mark.parametrize("problem", [on_fifo, on_sampled, on_contrastive])


@every
@pytest.mark.parametrize("precision", DTYPE)
def test_reductions_and_the_loss_alone(precision, problem, device):
    call = problem(precision, device)
    losses, *grads = call()
    for reduction, weight in ((1, 1 / 7), (2, 1.0)):
        loss, *weighted = call(reduction)
        torch.testing.assert_close(loss, losses.sum() * weight)
        torch.testing.assert_close(weighted, [grad * weight for grad in grads])
    alone, *nothing = call(0, False)
    assert torch.equal(alone, losses)
    assert {(grad.shape, grad.dtype) for grad in nothing} == {((0, 20), DTYPE[precision])}


@every
def test_autocast_rounds_nothing(problem, device):
    call = problem("float32", device)
    wanted = call()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        for value, expected in zip(call(), wanted, strict=True):
            assert torch.equal(value, expected)


def test_a_memory_of_float64_under_float32_products(device):
    """Is rounded, and makes nothing float64."""
    problem = fifo("float32", 20, device)
    twin = dataclasses.replace(problem, memory=problem.memory.double())
    for value, expected in zip(
        loss_and_gradient(twin, "float32"), loss_and_gradient(problem, "float32"), strict=True
    ):
        assert torch.equal(value, expected)
