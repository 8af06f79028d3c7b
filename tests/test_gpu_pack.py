"""The kernels that gpu_check.py needs are found by making its calls on the stand-in."""

import json
from functools import partial

import gpu_cases
import gpu_pack
import pytest
import recorded
import stand_in_gpu
import torch
from recorded import H200, Recorder

from benchmarks.cases.sizes import Case, MomentumCase
from rrd_kernels.functional import relational_step_
from rrd_kernels.triton.fifo.launches import FifoSettings, step_launches
from rrd_kernels.triton.runtime.launch import Specialization, specialize

CASE = Case(8, 64, "bfloat16")


def test_what_is_noted_is_what_the_step_describes():
    noted = recorded.of_call(partial(gpu_pack.fifo, [CASE]), H200)
    z_s, z_t = torch.empty(2, CASE.batch, CASE.dim, dtype=CASE.dtype, device="meta")
    memory = torch.empty(CASE.rows, CASE.dim, dtype=CASE.dtype, device="meta")
    pointer = torch.empty(1, dtype=torch.int64, device="meta")
    settings = FifoSettings(
        CASE.tau_s, CASE.tau_t, True, False, False, "bfloat16", 1, True, "before"
    )
    _, launches = step_launches(z_s, z_t, memory, pointer, settings, H200)
    assert list(noted) == list(map(specialize, launches))


def every_case():
    for case in gpu_cases.further_cases(gpu_cases.QUICK):
        case.fused(case.draw())


def test_tensors_without_memory_launch_what_real_ones_do():
    """Though they have no addresses, by which kernels are specialized too."""
    shapes = recorded.of_call(every_case, H200)
    real = recorded.of_call(every_case, H200, stand_in_gpu.CPU)
    assert shapes.keys() == real.keys()


def test_a_view_that_no_vector_begins_at_is_noted_as_such():
    case = MomentumCase(8, 64, "float32", n_data=500)
    noted = recorded.of_call(partial(gpu_pack.momentum, [case]), H200, stand_in_gpu.CPU)
    [kernel] = [one for one in noted if one.kernel.name == "add_exponentials"]
    arguments = dict(kernel.arguments)
    assert not arguments["normalizers"].aligned
    assert arguments["memory_v1"].aligned


def test_tf32_as_the_global_setting_has_it():
    tf32 = Case(8, 64, "tf32")
    noted = recorded.of_call(partial(gpu_pack.fifo, [tf32]), H200)
    [attend] = [one for one in noted if one.kernel.name == "attend"]
    assert dict(attend.constants)["INPUT_PRECISION"] == "tf32"


def test_what_a_gpu_refuses_is_no_call_to_make():
    memory = torch.randn(16, 8)
    with Recorder() as recorder, pytest.raises(ValueError, match="do not fit"):
        torch.ops.rrd_kernels.enqueue_(memory, torch.tensor([0]), torch.randn(4, 9), False, 0.0)
    assert not recorder.specializations


def test_processes_write_what_they_launch(tmp_path):
    with stand_in_gpu.in_place():
        for number in range(2):
            with recorded.into(tmp_path / "noted" / f"{number}.json"):
                memory, pointer = torch.randn(32, 8 << number), torch.tensor([30])
                relational_step_(*torch.randn(2, 4, 8 << number), memory, pointer)
    found = recorded.read(tmp_path / "noted")
    assert {kernel.kernel.name for kernel in found} == {"prepare", "attend_loss", "combine"}
    assert len(found) == 6
    assert all(type(kernel) is Specialization for kernel in found)


@pytest.mark.parametrize("part", gpu_pack.CALLS)
def test_every_part_needs_kernels(part):
    found = gpu_pack.kernels_of([part], H200)
    assert {"prepare", "attend", "combine"} <= {kernel.kernel.name for kernel in found}
    assert json.loads(json.dumps(list(found)))


def test_the_table_of_a_pack(tmp_path):
    [*kernels] = recorded.of_call(partial(gpu_pack.fifo, [CASE]), H200)
    (tmp_path / "code").write_bytes(bytes(3_000_000))
    entries = {
        str(number): {"file": "code", "specialization": json.loads(json.dumps(kernel))}
        for number, kernel in enumerate(kernels[:3])
    }
    assert gpu_pack.table(entries, tmp_path).splitlines() == [
        f"{name:20}    1    3.00 MB" for name in ("prepare", "attend", "combine")
    ]
