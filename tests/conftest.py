"""Fixtures that every test gets: the devices, and uninitialised memory that shows."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before PyTorch reads them. Threads that wait for each other sleep: test processes share the cores.
# What Triton compiles stays in the checkout, named by its source and its versions.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "triton"))

import pytest
import torch
from emulated import EMULATED, replace_cpu_kernels

from rrd_kernels.triton.runtime import run

with contextlib.suppress(ModuleNotFoundError):  # the tests that need it skip themselves
    from hypothesis import Phase, settings

    # For processes that repeat the numerical tests: --hypothesis-profile=quick.
    settings.register_profile("quick", max_examples=40, deadline=None)
    # A few examples, of kernels that take a second to be compiled.
    settings.register_profile("emulated", max_examples=8, deadline=None)
    # Those that a test names, whose kernels are compiled ahead: what hypothesis draws depends on
    # its version.
    settings.register_profile("gpu", phases=[Phase.explicit], deadline=None)

# cuBLAS's condition for the deterministic algorithms that nan_filled_empty asks for.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if EMULATED:
    CARD = replace_cpu_kernels()

    def pytest_sessionfinish(session: pytest.Session) -> None:
        if not CARD.executed:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


# For the session, so that hypothesis does not mind one for all its examples.
@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def nothing_left_of_a_stand_in():
    """What a test puts in the place of a GPU's parts would serve, wrongly, every test after it."""

    def parts():
        return run.run, torch.cuda.is_available, torch.cuda.get_device_capability

    before = parts()
    yield
    assert parts() == before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On the stand-in what it is unable to is run all the same: its kernels are noted."""
    stand_in_gpu = sys.modules.get("stand_in_gpu")
    if stand_in_gpu is None or "cuda" not in DEVICES:
        return
    for item in items:
        if lacks := stand_in_gpu.UNABLE.get(getattr(item, "originalname", "")):
            reason = f"the stand-in has not: {lacks}"
            item.add_marker(pytest.mark.xfail(reason=reason, run=lacks != "pinned memory"))


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


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Any, str], None]:
    """Notes what was compiled, for the table below."""
    return lambda code, name: record_property("code", (name, *vars(code).values()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the Triton compiler made of the kernels, where tests have compiled them."""
    properties = (p for r in terminalreporter.getreports("passed") for p in r.user_properties)
    if rows := [value for name, value in properties if name == "code"]:
        from machine_code import table

        terminalreporter.section("compiled Triton kernels")
        terminalreporter.write_line(table(rows))
