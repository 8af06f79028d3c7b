"""Fixtures that every test gets: the devices, and uninitialised memory that shows."""

import pytest
import torch
from hypothesis import settings

# For processes that repeat the numerical tests: --hypothesis-profile=quick.
settings.register_profile("quick", max_examples=40, deadline=None)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def nan_filled_empty():
    """``torch.empty``, at::empty in C++ included, comes filled with NaN (255 for bytes, which reads
    as NaN too), so that an element nobody has written shows in the result."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
