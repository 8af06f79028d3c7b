"""The same bits from run to run and whatever the number of threads."""

import pytest
import torch
from problems import draw

from rrd_kernels.functional import relational_loss, relational_step_

PRODUCTS = ["float64", "float32", "bfloat16"]


def step(problem, precision, unit_memory):
    """Each sample's loss and gradient, then the mean's, and the memory."""
    options = {"precision": precision, "unit_memory": unit_memory}
    z_s = problem.z_s.detach().requires_grad_()
    losses = relational_loss(z_s, problem.z_t, problem.memory, reduction="none", **options)
    memory, ptr = problem.memory.clone(), torch.tensor([5], device=problem.memory.device)
    mean = relational_step_(z_s, problem.z_t, memory, ptr, **options)
    grads = [torch.autograd.grad(loss.sum(), z_s)[0] for loss in (losses, mean)]
    return losses, mean, *grads, memory


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("unit_memory", [False, True])
@pytest.mark.parametrize("precision", PRODUCTS)
@pytest.mark.parametrize("batch", [5, 64, 300])
def test_one_two_and_three_threads_agree_bitwise(batch, precision, unit_memory, threads):
    problem = draw(batch, 40, 5000)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(step(problem, precision, unit_memory))
    for other in results[1:]:
        for value, wanted in zip(other, results[0], strict=True):
            assert torch.equal(value, wanted)


@pytest.mark.parametrize("precision", PRODUCTS)
def test_many_threads_agree_to_rounding(precision, threads):
    problem = draw(16, 40, 20000)
    threads(2)
    wanted = step(problem, precision, True)
    threads(8)  # more splits of the memory, so another order of sums
    # Twice the sums' own rounding, of about 64 terms in a row; the products stay the same.
    accuracy = 2 * 64 * 2.0 ** (-53 if precision == "float64" else -24)
    for value, expected in zip(step(problem, precision, True), wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("precision", PRODUCTS)
def test_two_runs_agree_bitwise(precision, device):
    problem = draw(70, 40, 3000, device=device)
    first = step(problem, precision, True)
    for _ in range(5):
        for value, wanted in zip(step(problem, precision, True), first, strict=True):
            assert torch.equal(value, wanted)
