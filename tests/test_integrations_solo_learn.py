"""The functions of solo-learn, where it is installed.

Its release on PyPI cannot be installed beside a PyTorch of today: put its sources on PYTHONPATH.
tests/test_family.py compares with recorded numbers of its training, which need no solo-learn.
"""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels.integrations import solo_learn

SPEC = importlib.util.find_spec("solo")
if SPEC is None or not SPEC.submodule_search_locations:
    pytest.skip("could not import 'solo' (solo-learn)", allow_module_level=True)


def theirs(name: str) -> Callable[..., Tensor]:
    """A function of solo-learn. Its file alone is loaded: it imports PyTorch, the package Lightning
    and more. Until 1.0.4 mocov2plus_loss_func was called moco_loss_func."""
    (folder,) = SPEC.submodule_search_locations
    older = {"mocov2plus": "moco"}.get(name, name)
    newest = Path(folder, "losses", f"{name}.py")
    found = name if newest.exists() else older
    spec = importlib.util.spec_from_file_location(found, newest.with_stem(found))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"{found}_loss_func")


FUNCTIONS = pytest.mark.parametrize(
    ("name", "taus", "transposed"),
    [("mocov2plus", [0.2], True), ("ressl", [0.1, 0.04], False)],
    ids=["mocov2plus", "ressl"],
)


@FUNCTIONS
def test_the_arguments_are_solo_learns(name, taus, transposed):
    wanted = inspect.signature(theirs(name)).parameters
    found = inspect.signature(getattr(solo_learn, f"{name}_loss_func")).parameters
    assert list(found) == list(wanted)
    assert [x.default for x in found.values()] == [x.default for x in wanted.values()]


@FUNCTIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])
def test_the_numbers_are_solo_learns(name, taus, transposed, dtype):
    dim = 12
    torch.manual_seed(0)
    q, k, queue = (F.normalize(torch.randn(rows, dim, dtype=dtype)) for rows in (9, 9, 50))
    queue = queue.T.contiguous() if transposed else queue
    results = []
    for function in (theirs(name), getattr(solo_learn, f"{name}_loss_func")):
        z = q.clone().requires_grad_()
        # As solo-learn's methods do. Ours normalises again: the gradient of z is the same.
        loss = function(F.normalize(z), k, queue, *taus)
        loss.backward()
        results.append((loss.detach(), z.grad))
    # As in test_family.py: a logit is a sum of dim products, each of two rounded numbers, over the
    # temperature; a probability errs by twice that, here and there.
    bound = 4 * (dim + 4) * torch.finfo(dtype).eps / 2 / min(taus)
    for wanted, found in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= bound * wanted.abs().max()
