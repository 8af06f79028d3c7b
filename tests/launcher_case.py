"""Run by test_launcher.py in a process whose libcuda.so.1 is the stub: the launches of csrc/cuda
against those that Python describes, for kernels compiled for an H200."""

import functools
import itertools
import json
import struct
import sys

import torch
import torch.nn.functional as F
from stub_driver.h200 import CUDA, HARDWARE, Function, stub, take_its_place, taken

from rrd_kernels.triton.fifo import operators
from rrd_kernels.triton.fifo.launches import FifoSettings, enqueue_launches, step_launches
from rrd_kernels.triton.runtime import run
from rrd_kernels.triton.runtime.launch import Launch, Loaded, specialize

recipes: list[tuple[list[Launch], list[Loaded]]] = []


def recorded(launches, loaded, buffers, inputs) -> list[int]:
    recipes.append((launches, loaded))
    return original(launches, loaded, buffers, inputs)


original, operators.recipe_of = operators.recipe_of, recorded
take_its_place()


def call(operator, *arguments):
    return getattr(torch.ops.rrd_kernels, operator).default._op_dk(CUDA, *arguments)


def expected(launch, kernel, addresses) -> list[int | None]:
    """Each parameter's bytes as an integer; None for what lies in the workspace."""
    values = []
    for name, type_name in specialize(launch).passed:
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            values.append(addresses.get(name))
        elif isinstance(value, float):
            packed = struct.pack("<d" if type_name == "fp64" else "<f", value)
            values.append(int.from_bytes(packed, "little"))
        else:
            values.append(value)
    return [*values, 0, 0]


def check(operator, z_s, z_t, memory, ptr, options, need_grad) -> None:
    memories = () if ptr is None else (memory, ptr)
    inputs = (z_s, z_t, memory) if ptr is None else (z_s, z_t)
    loss, grad = call(operator, *memories, *inputs, *options, need_grad)
    launches, kernels = recipes[-1]
    addresses = {
        "z_s": z_s.data_ptr(),
        "z_t": z_t.data_ptr(),
        "memory": memory.data_ptr(),
        "loss": loss.data_ptr(),
        "grad_z_s": grad.data_ptr(),
    }
    if ptr is not None:
        addresses["ptr"] = ptr.data_ptr()
    if loss.dim() == 1:
        addresses["losses"] = loss.data_ptr()
    if need_grad and memory.shape[0] < 512:  # the gradient takes the queries' place
        assert grad.untyped_storage().nbytes() == 2 * grad.nbytes
        addresses["queries"] = grad.data_ptr()
    done = taken()
    assert len(done) == len(launches) == 3
    for launch, kernel, stubbed in zip(launches, kernels, done, strict=True):
        assert stubbed.function == kernel.function
        assert list(stubbed.grid) == [*launch.grid, *(1,) * (3 - len(launch.grid))]
        assert list(stubbed.block) == [32 * launch.num_warps, 1, 1]
        assert stubbed.name == launch.kernel.name
        assert stubbed.shared_bytes == kernel.shared_bytes
        function = Function.from_address(stubbed.function)
        asked = kernel.shared_bytes if kernel.shared_bytes > 48 * 1024 else 0
        assert function.shared_bytes == asked
        assert function.loaded_in_capture_mode == 2  # relaxed, so that a capture may load
        assert not stubbed.dependent
        wanted = expected(launch, kernel, addresses)
        assert stubbed.count == len(wanted)
        found = stubbed.parameters[: stubbed.count]
        for value, want in zip(found, wanted, strict=True):
            assert value != 0 if want is None else value == want % 2**64, (launch.kernel, wanted)
    # What lies in the workspace is one buffer each, the same in every kernel, and none overlaps.
    places: dict[str, set[tuple[int, int]]] = {}
    for launch, stubbed in zip(launches, done, strict=True):
        for (name, _), value in zip(specialize(launch).passed, stubbed.parameters, strict=False):
            tensor = launch.arguments[name]
            if isinstance(tensor, torch.Tensor) and name not in {*addresses, "ptr"}:
                places.setdefault(name, set()).add((value, value + tensor.nbytes))
    assert {len(found) for found in places.values()} == {1}
    ranges = sorted(found.pop() for found in places.values())
    for (_, end), (begin, _) in itertools.pairwise(ranges):
        assert end <= begin
    assert {(begin - ranges[0][0]) % 512 for begin, _ in ranges} == {0}


def main() -> None:
    report = {}
    torch.manual_seed(0)
    soft, hard, whole = (
        (0.02, True, False, False),
        (0.0, True, True, False),
        (0.02, True, True, True),
    )
    for size, dim, form, precision, reduction, need_grad in (
        (512, 128, soft, None, 1, True),
        (512, 128, soft, "bfloat16", 0, True),
        (512, 24, soft, "float32", 2, False),
        (16, 1024, soft, "float32", 1, True),
        (512, 128, hard, "bfloat16", 1, True),
        (512, 24, whole, "bfloat16", 1, True),
    ):
        z_s, z_t = torch.randn(2, 8, dim)
        memory = F.normalize(torch.randn(size, dim), dim=1)
        ptr = torch.tensor([size - 3])
        common = (0.1, *form, precision, reduction)
        check("relational_loss_forward", z_s, z_t, memory, None, common, need_grad)
        for enqueue in ("before", "after"):
            step = (*common, enqueue, form != soft, 0.25)
            check("relational_step_forward_", z_s, z_t, memory, ptr, step, need_grad)

    # The same kind of call again, on other tensors: no recipe is made, the addresses are new.
    made = len(recipes)
    options = (0.1, *soft, None, 1)
    z_s, z_t = torch.randn(8, 128), torch.randn(8, 128)
    memory = F.normalize(torch.randn(512, 128), dim=1)
    call("relational_loss_forward", z_s, z_t, memory, *options, True)
    addresses = [launch.parameters[0] for launch in taken()]
    assert (len(recipes), addresses[0]) == (made, z_s.data_ptr())
    # Student and teacher may be one tensor in the first call of a kind, and two in the next.
    one = torch.randn(9, 128)
    call("relational_loss_forward", one, one, memory, *options, True)
    call("relational_loss_forward", torch.randn(9, 128), one, memory, *options, True)
    first, *_ = taken()[3:]
    assert first.parameters[1] == one.data_ptr() != first.parameters[0]

    # A thread without a context gets the device's primary one; that of device -1, for a CPU.
    stub.stub_drop_context()
    call("relational_loss_forward", z_s, z_t, memory, *options, True)
    assert (stub.stub_drop_context(), len(taken())) == (999, 3)

    # Whatever a launch depends on makes a recipe of its own.
    made = len(recipes)
    wide = torch.randn(8, 130)
    for arguments in (
        (wide[:, :128], z_t, memory, *options, True),
        (wide[:, 1:129], z_t, memory, *options, True),
        (z_s, z_t.half(), memory, *options, True),
        (z_s, z_t, memory[:511], *options, True),
        (z_s[:7], z_t[:7], memory, *options, True),
        (z_s, z_t, memory, 0.2, *soft, None, 1, True),
        (z_s, z_t, memory, 0.1, 0.03, *soft[1:], None, 1, True),
        (z_s, z_t, memory, 0.1, 0.02, False, False, False, None, 1, True),
        (z_s, z_t, memory, 0.1, 0.02, True, True, False, None, 1, True),
        (z_s, z_t, memory, 0.1, 0.02, True, False, True, None, 1, True),
        (z_s, z_t, memory, 0.1, *soft, "tf32", 1, True),
        (z_s, z_t, memory, 0.1, *soft, None, 0, True),
        (z_s, z_t, memory, *options, False),
    ):
        call("relational_loss_forward", *arguments)
        made += 1
        assert len(recipes) == made, arguments[3:]
    for newest_first in (False, True):
        ring = (*options, "after", newest_first, 0.0)
        call("relational_step_forward_", memory, torch.tensor([3]), z_s, z_t, *ring, True)
        made += 1
        assert len(recipes) == made
    # PyTorch's setting in its older form, then in its newer, after which the older cannot be read.
    older, newer = torch.set_float32_matmul_precision, torch.backends.cuda.matmul
    choices = [
        (functools.partial(older, "highest"), "tf32x3"),
        (functools.partial(older, "high"), "tf32"),
        (functools.partial(older, "medium"), "tf32"),
        (functools.partial(setattr, newer, "fp32_precision", "ieee"), "tf32x3"),
        (functools.partial(setattr, newer, "fp32_precision", "tf32"), "tf32"),
    ]
    for batch, (choose, wanted) in enumerate(choices, start=1):
        choose()
        call("relational_loss_forward", z_s[:batch], z_t[:batch], memory, *options, True)
        assert recipes[-1][0][1].constants["INPUT_PRECISION"] == wanted
        assert recipes[-1][0][0].grid == (batch,)
    newer.fp32_precision = "ieee"
    taken()

    from_python(z_s, z_t, memory)
    back_to_python(z_s, z_t, memory, options)
    assert stub.stub_capture_mode() == 0

    stub.stub_answer(700)
    try:
        call("relational_loss_forward", z_s, z_t, memory, *options, True)
    except RuntimeError as error:
        report["error"] = str(error)
    print(json.dumps(report))


def from_python(z_s, z_t, memory) -> None:
    """What has no recipe: the launches' own tensors are passed."""
    settings = FifoSettings(0.1, 0.02, True, False, False, "float32", 1, True)
    _, launches = step_launches(z_s, z_t, memory, None, settings, HARDWARE)
    launches = [launch._replace(dependent=i == 1) for i, launch in enumerate(launches)]
    launches += enqueue_launches(memory.double(), torch.tensor([3]), z_t.double(), False, 0.25)
    run.run(launches)
    done = taken()
    assert [stubbed.name for stubbed in done] == [launch.kernel.name for launch in launches]
    assert [stubbed.dependent for stubbed in done] == [0, 1, 0, 0, 0]
    for launch, stubbed in zip(launches, done, strict=True):
        tensors = {n: v for n, v in launch.arguments.items() if isinstance(v, torch.Tensor)}
        wanted = expected(launch, None, {n: tensor.data_ptr() for n, tensor in tensors.items()})
        assert stubbed.parameters[: stubbed.count] == wanted


def back_to_python(z_s, z_t, memory, options) -> None:
    """A driver that cannot tell what a kernel is passed; and one whose kernel is passed more."""
    launched = []
    run._launch_by_triton = lambda launch, device: launched.append(launch.kernel.name)
    for spoil in (lambda: stub.stub_tell_parameters(0), lambda: run.SCRATCH.append(8)):
        run._loaded.clear()
        spoil()
        batch = 20 + len(launched)  # a kind of call that has not been seen
        z = torch.randn(2, batch, 128)
        call("relational_loss_forward", *z, memory, *options, True)
        stub.stub_tell_parameters(1)
    run.SCRATCH.pop()
    assert launched == ["prepare", "attend", "combine"] * 2
    assert not taken()


if __name__ == "__main__":
    sys.exit(main())
