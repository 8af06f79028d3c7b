"""The table of bad inputs for the momentum memory's functions: nothing is written before it."""

import pytest
import torch
from momentum_problems import draw, views

from rrd_kernels.functional import (
    estimate_normalizers_,
    momentum_update_,
    sampled_relational_loss,
)

NAMES = ("z_s", "z_t", "memory_v1", "memory_v2", "contrast_idx")


@pytest.fixture(params=["loss", "estimate"])
def call(request):
    """Either function with some arguments replaced."""
    problem, unset = draw(4, 12, 20, 8), torch.full((2,), -1.0)

    def function(**replaced):
        given = dict(zip(NAMES, views(problem), strict=True)) | replaced
        if request.param == "loss":
            return sampled_relational_loss(**given)
        return estimate_normalizers_(unset, **given)

    yield function
    assert torch.equal(unset, torch.full((2,), -1.0))


@pytest.mark.parametrize("name", NAMES[:4])
@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (torch.randn(8), ValueError, "2-D"),
        (torch.ones(4, 8, dtype=torch.int64), TypeError, "floating"),
        (torch.ones(4, 8, dtype=torch.complex64), TypeError, "floating"),
        (torch.ones(4, 8).to_sparse(), TypeError, "dense"),
        ([[1.0]], TypeError, "must be a Tensor"),
        (torch.randn(20, 7), ValueError, "must have"),
    ],
    ids=["one axis", "integer", "complex", "sparse", "list", "width"],
)
def test_matrices(call, name, value, kind, text):
    with pytest.raises(kind, match=rf"{name}.*{text}|{text}"):
        call(**{name: value})


@pytest.mark.parametrize("name", NAMES)
def test_another_device(call, name):
    value = torch.zeros((4, 12), dtype=torch.int64) if name == "contrast_idx" else None
    if value is None:
        value = torch.zeros((20 if name.startswith("memory") else 4), 8)
    with pytest.raises(ValueError, match="on one device"):
        call(**{name: value.to("meta")})


def test_empty_memories(call):
    with pytest.raises(ValueError, match="must not be empty"):
        call(memory_v1=torch.zeros(0, 8), memory_v2=torch.zeros(0, 8))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tau_s": 0.0}, "tau_s must be positive"),
        ({"tau_t": float("inf")}, "tau_t must be positive"),
        ({"nce_t": -1.0}, "nce_t must be positive"),
        ({"reduction": "average"}, "reduction must be one of"),
        ({"method": "sparse"}, "method must be one of"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"backend": "gpu"}, "backend must be one of"),
        ({"normalizers": torch.ones(3)}, r"normalizers must have shape \(2,\)"),
        ({"normalizers": torch.ones(2, device="meta")}, "on one device"),
    ],
    ids=str,
)
def test_values(options, text):
    with pytest.raises(ValueError, match=text):
        sampled_relational_loss(*views(draw(4, 12, 20, 8)), **options)


@pytest.mark.parametrize(
    ("memory", "options", "kind", "text"),
    [
        (torch.zeros(1, 8).expand(20, 8), {}, ValueError, "expanded"),
        (torch.zeros(20, 8, requires_grad=True), {}, ValueError, "requires a gradient"),
        (torch.zeros(20, 7), {}, ValueError, "the same width"),
        (torch.zeros(20, 8), {"momentum": 1.0}, ValueError, "momentum must be in"),
        (torch.zeros(20, 8), {"index": torch.zeros(3, dtype=torch.int64)}, ValueError, "index"),
        (torch.zeros(20, 8), {"index": torch.zeros(4)}, TypeError, "int64"),
        (torch.zeros(20, 8), {"index": torch.zeros(4).bool()}, TypeError, "int64.*torch.bool"),
    ],
    ids=["expanded", "gradient", "width", "momentum", "length", "floating", "bool"],
)
def test_updates(memory, options, kind, text):
    given = {"index": torch.arange(4), "rows": torch.ones(4, 8)} | options
    with pytest.raises(kind, match=text):
        momentum_update_(memory, **given)
    assert not memory.any()
