"""Everything on a CPU while ``torch.set_default_device`` names a device of which no tensor has
values: what was made on it by accident would show."""

import copy
import io

import pytest
import torch
from emulated import EMULATED
from ranks import on_ranks

from rrd_kernels import ContrastSampler, FifoMemory, MomentumMemory, RRDLoss, checkpoint
from rrd_kernels.functional import (
    enqueue_,
    estimate_normalizers_,
    loss_of_partials,
    momentum_update_,
    relational_loss,
    relational_partials,
    relational_step_,
    sampled_relational_loss,
    warmup,
)
from rrd_kernels.momentum.negatives import draw_contrast_idx

SIZES = {"s_dim": 6, "t_dim": 5, "feat_dim": 8, "nce_k": 24}
MEMORIES = {
    "fifo 2025": {},
    "fifo 2024": {"protocol": "2024"},
    "fifo, unit rows": {"start": "unit", "slot_momentum": 0.5, "memory_dtype": torch.bfloat16},
    "momentum": {"memory_type": "momentum", "n_data": 30},
    "cosine": {"memory_type": "momentum", "n_data": 30, "similarity": "cosine"},
}

backends = pytest.mark.parametrize("backend", ["auto", "reference"])
memories = pytest.mark.parametrize("memory", MEMORIES)


@pytest.fixture
def meta():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.fixture
def cpu_then_meta():
    """Sets the default device when it is called: a run before it shows what is right."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


def batch_of(count=7):
    f_s = torch.randn(count, 6, device="cpu", requires_grad=True)
    idx = torch.randperm(30, device="cpu")[:count]
    contrast_idx = torch.randint(30, (count, 25), device="cpu")
    return f_s, torch.randn(count, 5, device="cpu"), idx, contrast_idx


def on_cpu(module):
    return all(value.device.type == "cpu" for value in module.state_dict().values())


def train(memory, backend):
    """All that a criterion does, and what came of it."""
    torch.manual_seed(3)
    settings = SIZES | MEMORIES[memory] | {"device": "cpu"}
    criterion = RRDLoss(**settings, backend=backend)
    assert on_cpu(criterion)
    found = []
    for arguments in (batch_of(), batch_of()[:3], batch_of(0), batch_of()):
        loss = criterion(*arguments)
        (grad,) = torch.autograd.grad(loss, arguments[0])
        found += [loss.detach(), grad, criterion(*arguments, update=False).detach()]
    criterion.warmup(7)
    with torch.autocast("cpu", torch.bfloat16):
        found.append(criterion(*batch_of()).detach())
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    other = RRDLoss(**settings, backend=backend)
    other.load_state_dict(torch.load(file, map_location="cpu"))
    if "fifo" in memory:
        for layout in checkpoint.LAYOUTS:
            wrapped = checkpoint.to_layout(criterion.state_dict(), layout)
            other.load_state_dict({f"module.{key}": value for key, value in wrapped.items()})
    copied = copy.deepcopy(other.half().float())
    found.append(copied.eval()(*batch_of()).detach())
    found += copied.state_dict().values()
    assert all(value.device.type == "cpu" for value in found)
    return found


@memories
@backends
def test_a_criterion_that_is_on_the_cpu(memory, backend, cpu_then_meta):
    wanted = train(memory, backend)
    cpu_then_meta()
    assert torch.empty(0).is_meta
    for value, expected in zip(train(memory, backend), wanted, strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("kind", [FifoMemory, MomentumMemory])
def test_memories_and_a_generator(kind, meta):
    settings = {"s_dim": 6, "t_dim": 5, "size": 24, "device": "cpu"}
    if kind is MomentumMemory:
        settings |= {"n_data": 30, "generator": torch.Generator("cpu").manual_seed(1)}
    memory = kind(**settings)
    memory.warmup(4, tau_s=0.1, tau_t=0.1)
    assert memory(*batch_of()[:3], tau_s=0.1, tau_t=0.1).isfinite()
    assert on_cpu(memory)


@pytest.mark.parametrize("memory", ["fifo 2025", "momentum"])
def test_none_is_the_default_device(memory, meta):
    criterion = RRDLoss(**SIZES | MEMORIES[memory])
    assert all(value.is_meta for value in criterion.state_dict().values())
    assert all(value.is_meta for value in criterion.parameters())
    criterion.to_empty(device="cpu")
    torch.set_default_device(None)
    wanted = RRDLoss(**SIZES | MEMORIES[memory]).state_dict()
    torch.set_default_device("meta")
    criterion.load_state_dict(wanted)
    assert criterion(*batch_of()).isfinite()


@backends
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_functions_of_the_fifo_memory(reduction, backend, meta):
    z_s, z_t = torch.randn(2, 5, 8, device="cpu")
    z_s.requires_grad_()
    memory = torch.randn(24, 8, device="cpu")
    ptr = torch.zeros(1, dtype=torch.int64, device="cpu")
    enqueue_(memory, ptr, z_t, momentum=0.5, backend=backend)
    settings = {"reduction": reduction, "backend": backend}
    for unit_memory in (False, True):
        for enqueue in ("before", "after"):
            step = relational_step_(
                z_s, z_t, memory, ptr, enqueue=enqueue, unit_memory=unit_memory, **settings
            )
            loss = relational_loss(z_s, z_t, memory, unit_memory=unit_memory, **settings)
            assert step.shape == loss.shape
            assert torch.autograd.grad((step + loss).sum(), z_s)[0].isfinite().all()
        sums, shifts = relational_partials(z_s, z_t, memory, backend=backend)
        of_parts = loss_of_partials(z_s, sums, shifts, reduction=reduction)
        torch.testing.assert_close(of_parts, loss)
        of_parts.sum().backward()
    assert relational_loss(z_s[:0], z_t[:0], memory, **settings).device.type == "cpu"
    assert ptr.item() == 25 % 24


@backends
@pytest.mark.parametrize("method", ["dense", "gather"])
def test_functions_of_the_momentum_memory(method, backend, meta):
    z_s, z_t = torch.randn(2, 5, 8, device="cpu")
    z_s.requires_grad_()
    v1, v2 = torch.randn(2, 30, 8, device="cpu") / 8**0.5
    normalizers = torch.full((2,), -1.0, device="cpu")
    for dtype in (torch.int64, torch.uint64):
        columns = torch.randint(30, (5, 9), device="cpu").to(dtype)
        estimate_normalizers_(normalizers, z_s, z_t, v1, v2, columns, backend=backend)
        for given in (None, normalizers):
            loss = sampled_relational_loss(
                z_s, z_t, v1, v2, columns, given, method=method, backend=backend
            )
            assert torch.autograd.grad(loss, z_s)[0].isfinite().all()
        momentum_update_(v1, columns[:, 0], z_s.detach(), backend=backend)
    assert (normalizers > 0).all()


def test_warmup_takes_a_device(meta):
    warmup(4, 24, 8, device="cpu")
    warmup(4, 24, 8, device="cpu", unit_memory=True, memory_dtype=torch.bfloat16)


@pytest.fixture(params=["host", "device"])
def way(request, monkeypatch):
    """Of drawing without replacement."""
    if request.param == "device":
        monkeypatch.setattr(ContrastSampler, "_draw_on_host", ContrastSampler._draw_on_device)


@pytest.mark.parametrize("device", ["cpu", None])
@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("size", [5, 40, 200], ids=["distinct", "some repeat", "all repeat"])
@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_negatives(mode, size, seeded, device, way, cpu_then_meta):
    labels = [0] * 70 + [1] * 20 + [2] * 10
    idx = torch.tensor([0, 95, 80])

    def draw():
        torch.manual_seed(5)
        generator = torch.Generator("cpu").manual_seed(5) if seeded else None
        sampler = ContrastSampler(labels, size, mode=mode, device=device, generator=generator)
        return sampler(idx)

    wanted = draw()
    cpu_then_meta()
    assert torch.equal(draw(), wanted)


def test_columns_with_replacement(meta):
    idx = torch.tensor([3, 8], device="cpu")
    for generator in (None, torch.Generator("cpu")):
        drawn = draw_contrast_idx(idx, 50, 20, generator=generator)
        assert drawn[:, 0].tolist() == [3, 8]


def test_no_float64_is_drawn(way, monkeypatch):
    """MPS has none."""
    made = []

    class Dtypes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            value = function(*args, **kwargs or {})
            if isinstance(value, torch.Tensor):
                made.append(value.dtype)
            return value

    for size in (5, 40, 200):
        for mode in ("exact", "relax"):
            sampler = ContrastSampler([0] * 70 + [1] * 20 + [2] * 10, size, mode=mode)
            with Dtypes():
                sampler(torch.arange(9))
    assert torch.int64 in made
    assert torch.float64 not in made


def step_on_ranks(rank):
    """A step of each kind of memory that ranks share, and one whose input one of them refuses."""
    torch.set_default_device("meta")
    found = []
    try:
        for memory, settings in MEMORIES.items():
            gathers = ["keys", "none"] + ["shard"] * ("fifo" in memory)
            for gather in gathers:
                torch.manual_seed(3)
                criterion = RRDLoss(**SIZES | settings, gather=gather, device="cpu")
                for count in (6, 6 - 2 * rank, 6 * rank):  # even, uneven, none on one
                    arguments = batch_of(count)
                    criterion(*arguments).backward()
                if gather != "none":
                    with pytest.raises((TypeError, RuntimeError), match="must be a Tensor"):
                        criterion(None if rank else arguments[0], *arguments[1:])
                criterion.warmup(6)
                criterion.eval()
                criterion(*batch_of(4))
                assert on_cpu(criterion)
                state = criterion.state_dict()
                criterion.load_state_dict(state)
                criterion.train()(*batch_of(4))
                found.append([getattr(v, "full_tensor", lambda v=v: v)() for v in state.values()])
    finally:
        torch.set_default_device(None)
    return found


def test_ranks():
    found = on_ranks(2, step_on_ranks)
    assert all(value.device.type == "cpu" for rank in found for state in rank for value in state)
    assert all(value.isfinite().all() for rank in found for state in rank for value in state)


@pytest.mark.skipif(EMULATED, reason="what compiles is the same there")
@memories
def test_compiled(memory, meta):
    torch.compiler.reset()
    criterion = RRDLoss(**SIZES | MEMORIES[memory], device="cpu")
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for arguments in (batch_of(), batch_of()[:3]):
        loss = compiled(*arguments)
        loss.backward()
        assert loss.isfinite()
        assert arguments[0].grad.device.type == "cpu"
    assert on_cpu(criterion)
