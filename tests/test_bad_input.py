"""The table of bad inputs: each a clear error, and nothing written before it."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from problems import draw, tolerance

from rrd_kernels import RRDLoss, extension, functional
from rrd_kernels.extension import why_not_fused
from rrd_kernels.functional import enqueue_, relational_loss, relational_step_

SIZES = {"s_dim": 6, "t_dim": 5, "feat_dim": 8, "nce_k": 16}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NOT_TEMPERATURES = [0.0, -0.1, float("inf"), float("nan")]


def raises(kind, *parts):
    return pytest.raises(kind, match=".*".join(re.escape(part) for part in parts))


@pytest.fixture(params=["relational_loss", "relational_step_"])
def call(request):
    """A call with one argument replaced; whatever it refuses, nothing is written."""
    problem, ptr = draw(4, 8, 16), torch.zeros(1, dtype=torch.int64)
    before = problem.memory.clone()
    arguments = {"z_s": problem.z_s, "z_t": problem.z_t, "memory": problem.memory}
    if request.param == "relational_step_":
        arguments["ptr"] = ptr

    def function(name=None, value=None, **options):
        replaced = options if name is None else {name: value}
        return getattr(functional, request.param)(**(arguments | replaced))

    yield function
    assert torch.equal(problem.memory, before)
    assert ptr.item() == 0


def step(memory, ptr, keys, **options):
    """relational_step_ as a way to write."""
    return relational_step_(torch.ones_like(keys), keys, memory, ptr, **options)


WRITERS = pytest.mark.parametrize("write", [enqueue_, step], ids=["enqueue", "step"])


@pytest.mark.parametrize("name", ["tau_s", "tau_t"])
class TestTemperatures:
    @pytest.mark.parametrize("value", NOT_TEMPERATURES)
    def test_values(self, call, name, value):
        with raises(ValueError, name, "positive and finite", str(value)):
            call(name, value)
        with raises(ValueError, f"nce_{name.replace('tau', 't')}", str(value)):
            RRDLoss(**SIZES, **{f"nce_{name.replace('tau', 't')}": value})

    @pytest.mark.parametrize("value", ["0.1", None, True, 0.1j])  # tensors: test_settings.py
    def test_types(self, call, name, value):
        with raises(TypeError, name, type(value).__name__):
            call(name, value)


@WRITERS
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), 2])
def test_momentum_out_of_range(value, write):
    memory, ptr = torch.zeros(4, 2), torch.zeros(1, dtype=torch.int64)
    with raises(ValueError, "momentum", "[0, 1)", str(value)):
        write(memory, ptr, torch.ones(2, 2), momentum=value)
    assert memory.sum() == 0
    assert ptr == 0
    with raises(ValueError, "slot_momentum", str(value)):
        RRDLoss(**SIZES, slot_momentum=value)


@pytest.mark.parametrize("name", ["reduction", "precision", "backend"])
def test_unknown_choices(call, name):
    with raises(ValueError, name, "must be one of", "'average'"):
        call(name, "average")


def test_unknown_order_of_a_step():
    memory, ptr = torch.zeros(4, 2), torch.zeros(1, dtype=torch.int64)
    with raises(ValueError, "enqueue", "must be one of", "'during'"):
        step(memory, ptr, torch.ones(2, 2), enqueue="during")
    assert memory.sum() == 0
    assert ptr == 0


@pytest.mark.parametrize(
    "name", ["protocol", "memory_type", "enqueue", "start", "precision", "backend"]
)
def test_unknown_settings(name):
    with raises(ValueError, name, "must be one of", "'average'"):
        RRDLoss(**SIZES, **{name: "average"})


@pytest.mark.parametrize("name", ["s_dim", "t_dim", "feat_dim", "nce_k"])
def test_settings_that_are_no_sizes(name):
    for value in (0, -3):
        with raises(ValueError, "at least 1", str(value)):
            RRDLoss(**(SIZES | {name: value}))
    with raises(TypeError, "must be an int", "float"):
        RRDLoss(**(SIZES | {name: 8.0}))


def test_settings_that_are_no_dtypes():
    with raises(TypeError, "memory_dtype", "torch.dtype", "str"):
        RRDLoss(**SIZES, memory_dtype="bfloat16")
    for value in (torch.int64, torch.float8_e4m3fn):
        with raises(ValueError, "memory_dtype", "must be one of", str(value)):
            RRDLoss(**SIZES, memory_dtype=value)


def test_missing_settings():
    with raises(ValueError, "s_dim must be given"):
        RRDLoss()
    with raises(ValueError, "t_dim must be given", "opt.t_dim"):
        RRDLoss(SimpleNamespace(s_dim=4))


@pytest.mark.parametrize("shape", [(5, 8), (4, 7)])
def test_z_t_of_another_shape(call, shape):
    with raises(ValueError, "z_s", "z_t", "(4, 8)", str(shape)):
        call("z_t", torch.randn(shape))


def test_memory_of_another_width(call):
    with raises(ValueError, "z_s", "memory", "(4, 8)", "(16, 7)"):
        call("memory", torch.randn(16, 7))


@pytest.mark.parametrize("name", ["z_s", "z_t", "memory"])
class TestMatrices:
    @pytest.mark.parametrize("shape", [(8,), (2, 4, 8), ()])
    def test_not_two_dimensional(self, call, name, shape):
        with raises(ValueError, name, "2-D", str(shape)):
            call(name, torch.randn(shape))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
    def test_not_floating(self, call, name, dtype):
        with raises(TypeError, name, "floating", str(dtype)):
            call(name, torch.ones(4, 8, dtype=dtype))

    def test_sparse(self, call, name):
        with raises(TypeError, name, "dense", "sparse"):
            call(name, torch.ones(4, 8).to_sparse())

    def test_not_a_tensor(self, call, name):
        with raises(TypeError, name, "must be a Tensor", "list"):
            call(name, [[1.0]])

    def test_dtensor(self, call, name, monkeypatch):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "0")
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)
        try:
            mesh = init_device_mesh("cpu", (1,))
            value = distribute_tensor(torch.randn(4, 8), mesh, [Shard(0)])
            with raises(TypeError, name, "DTensor", "local or full tensor"):
                call(name, value)
        finally:
            torch.distributed.destroy_process_group()

    def test_a_dtype_that_no_kernel_takes(self, call, name):
        with raises(TypeError, name, "float8"):
            call(name, torch.ones(4, 8).to(torch.float8_e4m3fn))

    def test_another_device(self, call, name):
        value = torch.empty(16 if name == "memory" else 4, 8, device="meta")
        with raises(ValueError, "one device", "meta"):
            call(name, value)


@pytest.mark.parametrize("shape", [(0, 8), (16, 0)])
def test_empty_memory(call, shape):
    rows = torch.randn(4, shape[1])
    with raises(ValueError, "memory must not be empty", str(shape)):
        call(z_s=rows, z_t=rows, memory=torch.randn(shape))


class TestWriting:
    def setup_method(self):
        self.memory = torch.randn(4, 8)
        self.ptr = torch.tensor([3])
        self.before = self.memory.clone()

    def refused(self, write, kind, *parts, **arguments):
        full = {"memory": self.memory, "ptr": self.ptr, "keys": torch.ones(2, 8)} | arguments
        with raises(kind, *parts):
            write(**full)
        assert torch.equal(self.memory, self.before)
        assert self.ptr.item() == 3

    @WRITERS
    def test_more_rows_than_slots(self, write):
        self.refused(write, ValueError, "5 rows", "(5, 8)", "(4, 8)", keys=torch.ones(5, 8))

    def test_keys_of_another_width(self):
        keys = torch.ones(2, 7)
        self.refused(enqueue_, ValueError, "keys", "memory", "(2, 7)", "(4, 8)", keys=keys)

    def test_keys_that_are_no_matrix(self):
        integers = torch.ones(2, 8, dtype=torch.int32)
        self.refused(enqueue_, ValueError, "keys", "2-D", keys=torch.ones(8))
        self.refused(enqueue_, TypeError, "keys", "floating", keys=integers)

    @WRITERS
    def test_pointers(self, write):
        self.refused(write, TypeError, "ptr", "int64", "float32", ptr=torch.tensor([3.0]))
        self.refused(write, TypeError, "ptr", "int64", "int", ptr=3)
        self.refused(write, ValueError, "ptr", "(1,)", "()", ptr=torch.tensor(3))
        self.refused(write, ValueError, "ptr", "one device", "meta", ptr=self.ptr.to("meta"))

    @WRITERS
    def test_memories_that_cannot_be_written(self, write):
        self.refused(write, ValueError, "expanded", memory=torch.ones(1, 8).expand(4, 8))
        overlapping = torch.zeros(20).as_strided((4, 8), (2, 1))
        self.refused(write, ValueError, "overlaps itself", memory=overlapping)
        assert overlapping.sum() == 0
        learned = self.memory.clone().requires_grad_()
        self.refused(write, ValueError, "requires a gradient", memory=learned)


@pytest.mark.parametrize("protocol", ["2024", "2025"])
@pytest.mark.parametrize(
    ("batch_s", "batch_t", "parts"),
    [(17, 17, ("17", "16 rows", "nce_k")), (4, 3, ("f_s and f_t", "(4, 6)", "(3, 5)"))],
    ids=["larger than the memory", "not the same"],
)
def test_refused_batches_leave_the_criterion_alone(protocol, batch_s, batch_t, parts):
    criterion = RRDLoss(**SIZES, protocol=protocol)
    before = criterion.memory.queue.clone()
    with raises(ValueError, *parts):
        criterion(torch.randn(batch_s, 6), torch.randn(batch_t, 5))
    assert torch.equal(criterion.memory.queue, before)
    assert criterion.memory.queue_ptr.item() == 0


def test_features_of_another_width_or_kind():
    criterion = RRDLoss(**SIZES)
    with raises(ValueError, "f_s", "[B, 6]", "(4, 5)"):
        criterion(torch.randn(4, 5), torch.randn(4, 5))
    with raises(ValueError, "f_t", "[B, 5]", "(4,)"):
        criterion(torch.randn(4, 6), torch.randn(4))
    with raises(TypeError, "f_s", "floating", "int64"):
        criterion(torch.ones(4, 6, dtype=torch.int64), torch.randn(4, 5))
    with raises(TypeError, "f_t", "Tensor", "NoneType"):
        criterion(torch.randn(4, 6), None)


def test_features_that_are_no_dense_tensors_leave_the_criterion_alone():
    criterion = RRDLoss(**SIZES)
    f_s, f_t = torch.randn(4, 6), torch.randn(4, 5)
    with raises(TypeError, "f_t", "dense", "sparse"):
        criterion(f_s, f_t.to_sparse())
    with raises(TypeError, "f_s", "float8"):
        criterion(f_s.to(torch.float8_e4m3fn), f_t)
    with raises(ValueError, "f_s", "one device", "meta"):
        criterion(f_s.to("meta"), f_t)
    assert criterion.memory.queue_ptr.item() == 0


def test_temperatures_of_a_memory_are_checked_before_the_enqueue():
    memory = RRDLoss(**SIZES).memory
    for name in ("tau_s", "tau_t"):
        with raises(ValueError, name, "-1"):
            memory(torch.randn(4, 6), torch.randn(4, 5), **{"tau_s": 1, "tau_t": 1, name: -1})
    assert memory.queue_ptr.item() == 0


@WRITERS
def test_a_memory_of_inference_mode_is_not_half_written(write):
    with torch.inference_mode():
        memory, ptr = torch.zeros(4, 2), torch.zeros(1, dtype=torch.int64)
    with raises(RuntimeError, "inference mode"):
        write(memory, ptr, torch.ones(2, 2))
    assert memory.sum() == 0
    assert ptr.item() == 0


def test_a_dict_of_settings_is_named():
    with raises(TypeError, "got dict", "SimpleNamespace(**opt)"):
        RRDLoss(SIZES)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch_is_a_differentiable_zero(call, reduction):
    z_s, z_t = torch.randn(0, 8, requires_grad=True), torch.randn(0, 8)
    loss = call(z_s=z_s, z_t=z_t, reduction=reduction)
    assert torch.equal(loss, torch.zeros(0 if reduction == "none" else ()))
    assert torch.autograd.grad(loss.sum(), z_s)[0].shape == (0, 8)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_zero_and_tiny_rows_are_normalised_as_pytorch_does(precision, device):
    problem = draw(4, 8, 16, device=device)
    problem.z_s[1] = 0
    problem.z_t[2] = 0
    problem.z_s[3] *= 1e-13 / problem.z_s[3].norm()  # below the clamp, so no radial part
    wanted_loss, wanted_grad = problem.float64()
    assert wanted_grad[1].norm() > 1e10  # g / 1e-12
    z_s = problem.z_s.double() if precision == "float64" else problem.z_s
    loss = relational_loss(
        z_s.requires_grad_(), problem.z_t, problem.memory, precision=precision, reduction="none"
    )
    loss.sum().backward()
    loss_bound, grad_bound = tolerance(problem, precision)
    assert ((loss.double() - wanted_loss).abs() <= loss_bound).all()
    assert ((z_s.grad.double() - wanted_grad).norm(dim=1) <= grad_bound).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_the_memory_that_is_not_finite_shows(dtype, value, device):
    problem = draw(3, 8, 16, dtype, device)
    problem.memory[5, 2] = value
    for unit_memory in (True, False):
        for need_grad in (True, False):
            z_s = problem.z_s.detach().requires_grad_(need_grad)
            loss = relational_loss(z_s, problem.z_t, problem.memory, unit_memory=unit_memory)
            assert not loss.isfinite()


def test_fused_backend_says_why_it_is_not_there(monkeypatch):
    assert "cpu and cuda, not on mps" in why_not_fused(torch.device("mps"))
    monkeypatch.setattr(extension, "EXTENSION_ERROR", "it was not built")
    rows, ptr = torch.zeros(4, 8), torch.zeros(1, dtype=torch.int64)
    with raises(RuntimeError, "backend='fused'", "it was not built"):
        relational_loss(rows, rows, rows, backend="fused")
    for write in (enqueue_, step):
        with raises(RuntimeError, "backend='fused'", "it was not built"):
            write(rows, ptr, rows, backend="fused")


def test_the_bare_operators_refuse_what_they_could_not_read():
    operators = torch.ops.rrd_kernels
    rows, wide = torch.randn(4, 8), torch.randn(16, 9)
    terms = (0.1, 0.1, False, False, False, None, 1, True)
    hard = (0.1, 0.0, *terms[2:])  # which needs the own pair
    with raises(ValueError, "tau_t zero with own_pair; got 0.1 and 0"):
        operators.relational_loss_forward(rows, rows, rows, *hard)
    with raises(ValueError, "[4, 8]", "[16, 9]"):
        operators.relational_loss_forward(rows, rows, wide, *terms)
    with raises(ValueError, "[4, 8]", "[16, 9]"):
        operators.enqueue_(wide, torch.tensor([0]), rows, False, 0.0)
    for empty in (torch.randn(0, 8), torch.randn(4, 0)):
        narrow = torch.randn(4, empty.shape[1])
        with raises(ValueError, str(list(empty.shape))):
            operators.relational_loss_forward(narrow, narrow, empty, *terms)
        with raises(ValueError, str(list(empty.shape))):
            operators.enqueue_(empty, torch.tensor([0]), narrow[:0], False, 0.0)
    with raises(ValueError, "one int64"):
        operators.enqueue_(rows, torch.tensor([], dtype=torch.int64), rows, False, 0.0)
