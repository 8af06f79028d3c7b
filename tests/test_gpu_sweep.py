"""The sweep over plans, on a stand-in for a GPU: its figures mean nothing."""

import argparse
from unittest import mock

import gpu_sweep
import pytest
import stand_in_gpu
import torch
from gpu_sweep import TABLE
from stand_in_gpu import GPU

from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import CUDA_CASES, Case
from benchmarks.report import __main__ as report
from rrd_kernels.triton.fifo.plan import make_plan
from rrd_kernels.triton.runtime.launch import specialize

DEPENDENT = f"{TABLE}, dependent launches"
SMALLER = f"{TABLE}, 64×64, 4 warps, 3 stages, ×3"
SIZES = [case for case in CUDA_CASES if gpu_sweep.takes(case)]


def swept():
    """The rows of one tiny size: those of its steps, and those in a graph, by their variants."""
    cases = [Case(16, 512, "bfloat16")]
    [(_, run)] = gpu_sweep.parts(argparse.Namespace(cases=cases, seconds=0.0, device=GPU))
    rows = run()
    return (
        {row["implementation"]: row for row in rows if row["figure"] == figure}
        for figure in ("step", "step in a graph")
    )


@pytest.fixture(autouse=True)
def one_copy(monkeypatch):
    """Of each memory."""
    monkeypatch.setattr(stand_in_gpu, "CACHE_BYTES", 0)


def test_every_variant_is_checked_and_timed():
    with stand_in_gpu.in_place():
        steps, graphs = swept()
    assert next(iter(steps)) == TABLE
    assert {DEPENDENT, SMALLER} < steps.keys() == graphs.keys()
    assert all(0 < row["gradient_error"] < 0.1 for row in steps.values())
    assert all(row["median"] > 0 for row in graphs.values())
    assert graphs[TABLE]["times_ours"] == 1


def test_what_fails_is_named_and_ends_nothing():
    def run(launches):
        if launches[1].dependent:
            raise RuntimeError("operation not supported\nthe driver says more")
        stand_in_gpu.run(launches)
        if launches[1].constants["STAGES"] == 2:
            launches[2].arguments["grad_z_s"].mul_(1.5)

    with stand_in_gpu.in_place(), mock.patch.object(gpu_sweep.launcher, "run", run):
        steps, graphs = swept()
    wrong = {name for name in steps if "2 stages" in name}
    assert wrong
    assert steps.keys() - graphs.keys() == wrong | {DEPENDENT}
    assert {steps[name]["outcome"] for name in wrong} == {"disagrees"}
    assert steps[DEPENDENT]["reason"] == "RuntimeError: operation not supported"
    failures = report.failures({"failures": [], "rows": list(steps.values())})
    assert len(failures) == len(wrong) + 1


def test_it_is_for_one_kind_of_gpu():
    refused = pytest.raises(SystemExit, match=r"compute capability 9\.0")
    other = mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0))
    with stand_in_gpu.in_place(), other, refused:
        gpu_sweep.main()


def kernels(launches):
    return tuple((specialize(launch), launch.grid, launch.dependent) for launch in launches)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.name)
def test_variants_differ_and_the_first_is_the_tables(case):
    listed = gpu_sweep.variants(case)
    launched = [kernels(gpu_sweep.described(case, variant)) for variant in listed]
    assert len({variant.name for variant in listed}) == len(set(launched)) == len(listed) > 3
    sizes = (case.batch, case.rows, case.dim, case.format, case.dtype.itemsize)
    assert listed[0] == (TABLE, make_plan(*sizes, True, gpu_sweep.H200), ())


def test_what_is_wanted_ahead_is_what_is_launched():
    """On tensors that have memory, as the sweep draws them."""
    ahead = set(map(specialize, gpu_sweep.wanted()))
    for case in (case for case in SIZES if case.batch == 64):
        state, batches = draw(case, torch.device("cpu"))
        for kind in map(gpu_sweep.step_of, gpu_sweep.variants(case)):
            assert set(map(specialize, kind(case, state).launches(*batches[-1])[1])) <= ahead
