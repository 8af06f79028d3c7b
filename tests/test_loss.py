"""RRDLoss as people use it: scripts, evaluation, precisions, copies and checkpoints."""

import contextlib
import copy
import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from problems import runs_triton
from torch.nn.modules.loss import _Loss

import rrd_kernels
from rrd_kernels import CRDLoss, FifoMemory, RelationalQueue, RRDLoss

SIZES = {"s_dim": 12, "t_dim": 20, "feat_dim": 16, "nce_k": 48}


def features(batch=10, device="cpu", dtype=torch.float32):
    f_s = torch.randn(batch, 12, device=device).to(dtype).requires_grad_()
    return f_s, torch.randn(batch, 20, device=device).to(dtype)


def make(device="cpu", **settings):
    return RRDLoss(**(SIZES | settings)).to(device)


def same_state(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_opt_and_keywords_mean_the_same():
    opt = SimpleNamespace(**SIZES, nce_t_s=0.07, nce_t_t=0.03, memory_type="fifo")
    torch.manual_seed(1)
    a = RRDLoss(opt)
    torch.manual_seed(1)
    b = make(nce_t_s=0.07, nce_t_t=0.03)
    assert same_state(a.state_dict(), b.state_dict())
    assert (a.tau_s, a.tau_t) == (b.tau_s, b.tau_t) == (0.07, 0.03)
    assert RRDLoss(opt, nce_t_s=0.5).tau_s == 0.5


@pytest.mark.parametrize(
    ("protocol", "tau_s", "tau_t", "order"),
    [("2025", 0.1, 0.02, "before"), ("2024", 0.04, 0.1, "after")],
)
def test_protocols(protocol, tau_s, tau_t, order):
    criterion = make(protocol=protocol)
    assert (criterion.tau_s, criterion.tau_t) == (tau_s, tau_t)
    assert criterion.memory.enqueue == order
    other = "after" if order == "before" else "before"
    assert make(protocol=protocol, enqueue=other).memory.enqueue == other


def test_defaults_are_the_published_ones():
    criterion = RRDLoss(s_dim=4, t_dim=4)
    assert criterion.memory.queue.shape == (16384, 128)


def test_published_call_forms(device):
    criterion = make(device).eval()
    f_s, f_t = features(device=device)
    idx = torch.arange(10, device=device)
    plain = criterion(f_s, f_t)
    assert torch.equal(plain, criterion(f_s, f_t, idx))
    assert torch.equal(plain, criterion(f_s, f_t, idx, None))
    assert torch.equal(plain, criterion(f_s[..., None, None], f_t[..., None, None]))
    assert criterion.embed_s is criterion.memory.embed_s
    assert criterion.embed_t is criterion.memory.embed_t
    assert plain.shape == ()


def test_any_batch_up_to_the_memory(device):
    criterion = make(device)
    for batch in (1, 7, 48, 5):
        criterion(*features(batch, device)).backward()
    assert criterion.memory.queue_ptr.item() == 61 % 48


def test_only_the_students_projection_learns(device):
    criterion = make(device)
    f_s, f_t = features(device=device)
    criterion(f_s, f_t.requires_grad_()).backward()
    assert criterion.embed_s.weight.grad is not None
    assert criterion.embed_t.weight.grad is None
    assert f_t.grad is None
    assert [name for name, p in criterion.named_parameters() if p.requires_grad] == [
        "memory.embed_s.weight",
        "memory.embed_s.bias",
    ]


def test_eval_leaves_the_memory_alone(device):
    criterion = make(device).eval()
    before = copy.deepcopy(criterion.state_dict())
    criterion(*features(device=device)).backward()
    assert same_state(before, criterion.state_dict())


@pytest.mark.parametrize("protocol", ["2024", "2025"])
def test_teacher_row_that_is_not_finite(protocol, device):
    criterion = make(device, protocol=protocol)
    f_s, f_t = features(device=device)
    f_t[3, 0] = float("nan")
    assert criterion(f_s, f_t).isnan()
    assert criterion.memory.queue.isfinite().all()
    assert criterion(*features(device=device)).isfinite()


def test_empty_batch_is_a_differentiable_zero(device):
    criterion = make(device)
    before = copy.deepcopy(criterion.state_dict())
    f_s, f_t = features(0, device)
    loss = criterion(f_s, f_t)
    loss.backward()
    assert loss.item() == 0
    assert f_s.grad.shape == (0, 12)
    assert torch.equal(criterion.embed_s.weight.grad, torch.zeros(16, 12, device=device))
    assert same_state(before, criterion.state_dict())


def against_the_reference(criterion, f_s, f_t, context):
    """Loss and gradient of a step, and of its reference, which sees the same projections."""
    oracle = copy.deepcopy(criterion)
    oracle.memory.backend = "reference"
    results = []
    for module in (criterion, oracle):
        leaf = f_s.detach().requires_grad_()
        with context:
            loss = module(leaf, f_t)
        loss.backward()
        results.append((loss, leaf.grad, module.embed_s.weight.grad))
    return results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    criterion = make(device)
    f_s, f_t = features(device=device)
    context = torch.autocast(device.type, dtype)
    (loss, grad, _), (wanted, wanted_grad, _) = against_the_reference(criterion, f_s, f_t, context)
    assert loss.dtype == grad.dtype == criterion.memory.queue.dtype == torch.float32
    # The memory is float32, so the products are: the same numbers but for the order of sums. The
    # gradient is rounded to autocast's dtype on its way through the projection.
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    accuracy = 4 * torch.finfo(dtype).eps
    assert (grad - wanted_grad).norm() <= accuracy * wanted_grad.norm()


@pytest.mark.parametrize("features_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("module_dtype", [torch.float32, torch.float64])
def test_autocast_leaves_float64_alone(module_dtype, features_dtype, device):
    criterion = make(device).to(module_dtype)
    with torch.autocast(device.type, torch.bfloat16):
        loss = criterion(*features(device=device, dtype=features_dtype))
    assert loss.isfinite()
    assert loss.dtype == module_dtype


@pytest.mark.parametrize("features_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_mixed_precisions(dtype, features_dtype, device):
    criterion = make(device).to(dtype)
    assert criterion.memory.queue_ptr.dtype == torch.int64
    f_s, f_t = features(device=device, dtype=features_dtype)
    ours, wanted = against_the_reference(criterion, f_s, f_t, contextlib.nullcontext())
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == features_dtype
    assert ours[2].dtype == dtype
    # What is rounded: the products' operands (in bfloat16, on a GPU in float16 too; test_properties
    # holds those), and the gradient on its way out, to the module's dtype and to the features'.
    half = (torch.bfloat16, torch.float16) if runs_triton(device) else (torch.bfloat16,)
    if dtype not in half:
        torch.testing.assert_close(ours[0], wanted[0], rtol=1e-5, atol=0)
        for grad, expected in zip(ours[1:], wanted[1:], strict=True):
            kind = grad.dtype
            accuracy = 4 * max(torch.finfo(kind).eps, torch.finfo(dtype).eps, 2.0**-20)
            assert (grad - expected).norm() <= accuracy * expected.norm()


def test_half_and_back_keep_training(device):
    criterion = make(device)
    criterion.half()
    criterion(*features(device=device, dtype=torch.float16)).backward()
    criterion.float()
    criterion.zero_grad()
    criterion(*features(device=device)).backward()
    assert criterion.memory.queue.isfinite().all()


def roundtrip_deepcopy(criterion):
    return copy.deepcopy(criterion)


def roundtrip_pickle(criterion):
    return pickle.loads(pickle.dumps(criterion))


def roundtrip_state_dict(criterion):
    buffer = io.BytesIO()
    torch.save(criterion.state_dict(), buffer)
    buffer.seek(0)
    other = make()
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    return other


@pytest.mark.parametrize("roundtrip", [roundtrip_deepcopy, roundtrip_pickle, roundtrip_state_dict])
def test_copies_go_on_as_the_original_over_the_wrap(roundtrip):
    criterion = make()
    for _ in range(3):
        criterion(*features())
    other = roundtrip(criterion)
    for _ in range(4):
        f_s, f_t = features()
        assert torch.equal(criterion(f_s, f_t), other(f_s, f_t))
    assert same_state(criterion.state_dict(), other.state_dict())
    other(*features())
    assert not torch.equal(criterion.memory.queue_ptr, other.memory.queue_ptr)


def test_to_another_dtype_and_device_keeps_values(device):
    criterion = make()
    moved = copy.deepcopy(criterion).to(device, torch.float64)
    torch.testing.assert_close(moved.memory.queue.cpu(), criterion.memory.queue.double())
    assert moved.memory.queue.device.type == device.type


class TestMemoryDtype:
    """The rows alone are stored in another dtype."""

    DTYPES = pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
    )

    def pair(self, dtype, **settings):
        """A criterion, and one that holds the same rows in float32; of equal seed."""
        torch.manual_seed(3)
        criterion = make(memory_dtype=dtype, **settings)
        torch.manual_seed(3)
        return criterion, make(**settings)

    @DTYPES
    @pytest.mark.parametrize("start", ["published", "unit"])
    def test_equal_seeds_give_equal_rows_rounded(self, start, dtype):
        criterion, plain = self.pair(dtype, start=start)
        assert torch.equal(criterion.memory.queue, plain.memory.queue.to(dtype))
        assert criterion.memory.unit_memory == plain.memory.unit_memory
        for name, parameter in criterion.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, plain.get_parameter(name))

    @DTYPES
    @pytest.mark.parametrize("protocol", ["2024", "2025"])
    def test_loss_is_that_of_rounded_rows_in_float32(self, protocol, dtype, device):
        criterion, plain = (module.to(device) for module in self.pair(dtype, protocol=protocol))
        assert criterion.memory.queue.dtype == dtype
        plain.load_state_dict(criterion.state_dict())
        f_s, f_t = features(device=device)
        twin = f_s.detach().clone().requires_grad_()
        if protocol == "2025":  # the batch's rows are rounded too, when they enter
            criterion(f_s.detach(), f_t)
            plain.load_state_dict(criterion.state_dict())
            criterion.eval()
            plain.eval()
        loss, wanted = criterion(f_s, f_t), plain(twin, f_t)
        loss.backward()
        wanted.backward()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # The same numbers in products of float32 or finer, but for the order of sums.
        torch.testing.assert_close(loss.float(), wanted, rtol=1e-5, atol=0)
        assert (f_s.grad - twin.grad).norm() <= 1e-4 * twin.grad.norm()
        assert criterion.embed_s.weight.grad.dtype == torch.float32

    @DTYPES
    def test_states_load_with_their_own_rounding(self, dtype):
        criterion, plain = self.pair(dtype)
        criterion(*features())
        other = make(memory_dtype=dtype)
        other.load_state_dict(criterion.state_dict(), strict=True)
        assert same_state(other.state_dict(), criterion.state_dict())
        plain(*features())
        other.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(other.memory.queue, plain.memory.queue.to(dtype))

    def test_autocast_to_it_gives_its_products(self, device):
        criterion, wanted = (
            self.pair(torch.bfloat16, precision=precision)[0].to(device)
            for precision in (None, "bfloat16")
        )
        f_s, f_t = features(device=device)
        with torch.autocast(device.type, torch.bfloat16):
            assert torch.equal(criterion(f_s, f_t), wanted(f_s, f_t))

    def test_default_is_the_dtype_of_the_weights(self):
        assert make(dtype=torch.float64).memory.queue.dtype == torch.float64


def test_starts():
    published, unit = make(), make(start="unit")
    assert torch.allclose(published.memory.queue.norm(dim=0), torch.ones(16))
    assert torch.allclose(unit.memory.queue.norm(dim=1), torch.ones(48))


class TestUnitRows:
    """The promise of the bounded softmax is looked at, never assumed."""

    def test_a_short_memory_starts_longer_than_one(self):
        short = make(nce_k=6)
        assert short.memory.queue.norm(dim=1).max() > 1.1
        assert not short.memory.unit_memory
        assert make(nce_k=4096).memory.unit_memory
        assert make(nce_k=6, start="unit").memory.unit_memory

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_rounded_unit_rows_still_count(self, dtype):
        criterion = make(start="unit").to(dtype)
        criterion.memory.inspect_rows()
        assert criterion.memory.unit_memory

    def test_loading_looks_again(self):
        criterion = make(nce_k=4096)
        state = criterion.state_dict()
        state["memory.queue"] = 40 * state["memory.queue"]
        criterion.load_state_dict(state)
        assert not criterion.memory.unit_memory
        f_s, f_t = features()
        loss = criterion.eval()(f_s, f_t)
        oracle = make(nce_k=4096, backend="reference")
        oracle.load_state_dict(state)
        torch.testing.assert_close(loss, oracle.eval()(f_s, f_t))

    def test_loading_takes_the_promise_back_and_never_gives_it(self):
        """Else a resumed training would round otherwise than the unbroken one."""
        short, unit = make(nce_k=6), make(nce_k=6, start="unit")
        short.load_state_dict(unit.state_dict())
        assert not short.memory.unit_memory
        unit.load_state_dict(unit.state_dict())
        assert unit.memory.unit_memory

    def test_not_a_number_does_not_count(self):
        memory = FifoMemory(4, 4, 8, 4096)
        memory.queue[5, 3] = float("nan")
        memory.inspect_rows()
        assert not memory.unit_memory

    def test_meta_device_is_left_undecided(self):
        criterion = RRDLoss(**SIZES, device="meta")
        assert not criterion.memory.unit_memory
        real = make(nce_k=48, start="unit")
        criterion.to_empty(device="cpu").load_state_dict(real.state_dict())
        assert criterion.memory.unit_memory


def test_slot_momentum_reaches_the_memory():
    criterion = make(start="unit", slot_momentum=0.5).eval()
    f_s, f_t = features(1)
    old, new = criterion.memory.queue[0], F.normalize(criterion.embed_t(f_t)[0], dim=0)
    wanted = F.normalize(0.5 * old + 0.5 * new, dim=0)
    criterion.train()(f_s, f_t)
    torch.testing.assert_close(criterion.memory.queue[0], wanted)


def test_gradient_accumulation_and_a_shared_criterion(device):
    """Two forwards before one backward, as in gradient accumulation."""
    criterion = make(device)
    apart = copy.deepcopy(criterion)
    batches = [features(device=device) for _ in range(2)]
    sum(criterion(*batch) for batch in batches).backward()
    wanted = [batch[0].grad.clone() for batch in batches]
    for batch in batches:
        batch[0].grad = None
        apart(*batch).backward()
    for batch, grad in zip(batches, wanted, strict=True):
        assert torch.equal(batch[0].grad, grad)


def test_repr_names_the_settings():
    text = repr(make())
    assert "protocol='2025'" in text
    assert "size=48" in text


@pytest.mark.parametrize(
    "make",
    [make, lambda: CRDLoss(**SIZES, n_data=50), lambda: RelationalQueue(16, 48)],
    ids=["RRDLoss", "CRDLoss", "RelationalQueue"],
)
def test_is_a_loss_of_pytorch_with_one_reduction(make):
    criterion = make()
    assert isinstance(criterion, _Loss)
    assert criterion.reduction == "mean"
    with pytest.raises(ValueError, match="reduction must be one of 'mean'; got 'sum'"):
        criterion.reduction = "sum"
    assert "reduction" not in vars(criterion)  # pickles have what they had


def test_version_is_that_of_the_distribution():
    version = Path(__file__).resolve().parents[1] / "VERSION"
    assert rrd_kernels.__version__ == version.read_text().strip()


class Student(torch.nn.Module):
    """A criterion inside of what DDP wraps, as its projection learns too."""

    def __init__(self, teacher_learns):
        super().__init__()
        self.body = torch.nn.Linear(8, 12)
        self.criterion = make()
        self.criterion.embed_t.requires_grad_(teacher_learns)

    def forward(self, x, f_t):
        return self.criterion(self.body(x), f_t)


@pytest.fixture
def process_group(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def train_under_ddp(teacher_learns):
    module = torch.nn.parallel.DistributedDataParallel(Student(teacher_learns))
    for _ in range(3):
        module(torch.randn(10, 8), torch.randn(10, 20)).backward()
    return module.module.criterion


def test_ddp_finds_no_parameter_without_a_gradient(process_group):
    assert train_under_ddp(teacher_learns=False).memory.queue_ptr.item() == 30
    with pytest.raises(RuntimeError, match="parameters that were not used"):
        train_under_ddp(teacher_learns=True)


def test_warmup_leaves_the_state_alone(device):
    criterion = make(device)
    before = copy.deepcopy(criterion.state_dict())
    criterion.warmup(10)
    criterion.warmup(10, dtype=torch.bfloat16)
    assert same_state(before, criterion.state_dict())
    with pytest.raises(ValueError, match="more than the 48 rows of memory"):
        criterion.warmup(49)
