"""Projections that are not one nn.Linear, given or assigned."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rrd_kernels import FifoMemory, MomentumMemory, RRDLoss, checkpoint, reference


@pytest.fixture(autouse=True)
def in_float64():
    """In which the default tolerance of assert_close, 1e-7, is far above rounding, 1e-16 of a
    number times at most 1 / tau, and far below what a setting that is ignored would change."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Tuple(nn.Module):
    def forward(self, x):
        return x, x


def mlp(width):
    return nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, 16))


def batch_norm(width):
    return nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16))


def old_weight_norm(width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(width, 16))


def parametrized(width):
    return nn.utils.parametrizations.weight_norm(nn.Linear(width, 16))


class Pooling(nn.Module):
    """Takes unpooled features [B, dim, h, w] as well."""

    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(width, 16, 1)

    def forward(self, x):
        return self.convolution(x.reshape(*x.shape[:2], -1, 1)).mean((2, 3))


HEADS = {
    "mlp": mlp,
    "batch norm": batch_norm,
    "weight norm": parametrized,
    "old weight norm": old_weight_norm,
    "convolution": Pooling,
    "no weights": lambda width: nn.AvgPool1d(width // 16),
    "lazy": lambda width: nn.LazyLinear(16),
}
MEMORIES = {
    "fifo": {"nce_k": 32},
    "momentum": {"memory_type": "momentum", "n_data": 40, "nce_k": 6, "similarity": "cosine"},
}


def expected(criterion, f_s, f_t, samples):
    z_s = criterion.embed_s(f_s)
    with torch.no_grad():
        z_t = criterion.embed_t(f_t)
    if not samples:
        queue, ptr = criterion.memory.queue.clone(), criterion.memory.queue_ptr.clone()
        return reference.relational_step_(z_s, z_t, queue, ptr)
    rows = criterion.memory.contrast
    return reference.sampled_relational_loss(z_s, z_t, rows.memory_v1, rows.memory_v2, samples[1])


@pytest.mark.parametrize("how", ["given", "assigned"])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_any_module_that_maps_to_the_width(memory, name, how, device):
    if how == "given":
        heads = {"embed_s": HEADS[name](32).to(device), "embed_t": HEADS[name](48).to(device)}
        criterion = RRDLoss(feat_dim=16, device=device, **heads, **MEMORIES[memory])
    else:
        criterion = RRDLoss(s_dim=5, t_dim=6, feat_dim=16, device=device, **MEMORIES[memory])
        criterion.embed_s = HEADS[name](32).to(device)
        criterion.embed_t = HEADS[name](48).to(device)
    f_s = torch.randn(8, 32, device=device, requires_grad=True)
    f_t = torch.randn(8, 48, device=device)
    columns = torch.randint(40, (8, 7), device=device)
    samples = (columns[:, 0].contiguous(), columns) if memory == "momentum" else ()
    # Of a batch norm the statistics move at each call.
    twin = copy.deepcopy(criterion) if name == "batch norm" else criterion
    wanted = expected(twin, f_s, f_t, samples)
    gradient = torch.autograd.grad(wanted, f_s)[0]
    criterion.warmup(8)
    loss = criterion(f_s, f_t, *samples)
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(f_s.grad, gradient)
    assert all(weight.grad is not None for weight in criterion.embed_s.parameters())
    assert all(not w.requires_grad and w.grad is None for w in criterion.embed_t.parameters())
    # Each projection is there once, under the published name, and a state comes back.
    heads = [key for key in criterion.state_dict() if "embed" in key]
    assert all(key.startswith(("memory.embed_s.", "memory.embed_t.")) for key in heads)
    state = copy.deepcopy(criterion.state_dict())
    for value in criterion.state_dict().values():
        value.zero_()
    criterion.load_state_dict(state)
    torch.testing.assert_close(dict(criterion.state_dict()), dict(state))


def test_identity(device):
    criterion = RRDLoss(embed_s=nn.Identity(), embed_t=nn.Identity(), feat_dim=16, nce_k=32)
    criterion = criterion.to(device)
    f_s, f_t = torch.randn(2, 8, 16, device=device)
    f_s.requires_grad_()
    wanted = expected(criterion, f_s, f_t, ())
    torch.testing.assert_close(criterion(f_s, f_t), wanted)
    torch.testing.assert_close(criterion.queue[:8], F.normalize(f_t))
    assert list(criterion.state_dict()) == ["memory.queue", "memory.queue_ptr"]


def test_a_convolution_gets_maps_of_any_size(device):
    head = nn.Sequential(nn.Conv2d(12, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    criterion = RRDLoss(embed_s=head, t_dim=20, feat_dim=16, nce_k=32).to(device)
    f_t = torch.randn(6, 20, device=device)
    for size in (1, 7):
        f_s = torch.randn(6, 12, size, size, device=device)
        wanted = expected(criterion, f_s, f_t, ())
        torch.testing.assert_close(criterion(f_s, f_t), wanted)


def test_unpooled_features_for_a_projection_that_takes_them(device):
    criterion = RRDLoss(embed_s=Pooling(32), embed_t=Pooling(48), feat_dim=16, nce_k=32).to(device)
    f_s = torch.randn(8, 32, 3, 3, device=device)
    assert criterion(f_s, torch.randn(8, 48, 5, 5, device=device)).shape == ()


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", ["embed_s", "embed_t"])
def test_a_wrong_width_is_refused_before_anything_is_written(name, memory, device):
    heads = {"embed_s": mlp(12), "embed_t": mlp(12)} | {name: nn.Linear(12, 10)}
    criterion = RRDLoss(feat_dim=16, **heads, **MEMORIES[memory]).to(device)
    state = copy.deepcopy(criterion.state_dict())
    samples = (torch.arange(8, device=device),) if memory == "momentum" else ()
    features = torch.randn(8, 12, device=device)
    with pytest.raises(ValueError, match=rf"{name} must map features to \[8, 16\].*\(8, 10\)"):
        criterion(features, features, *samples)
    setattr(criterion, name, Tuple())
    with pytest.raises(TypeError, match=f"{name} must return a floating Tensor; got tuple"):
        criterion(features, features, *samples)
    for key, value in criterion.state_dict().items():
        assert torch.equal(value, state.get(key, value)), key


def test_features_that_a_projection_does_not_take_are_named(device):
    criterion = RRDLoss(embed_s=mlp(12), t_dim=20, feat_dim=16, nce_k=32).to(device)
    with pytest.raises(RuntimeError) as caught:
        criterion(torch.randn(8, 5, device=device), torch.randn(8, 20, device=device))
    assert caught.value.__notes__ == ["embed_s was given features of shape (8, 5)"]
    assert criterion.queue_ptr.item() == 0


def test_bad_projections():
    with pytest.raises(TypeError, match=r"embed_s must be a torch\.nn\.Module; got str"):
        RRDLoss(s_dim=4, t_dim=4, embed_s="mlp")
    with pytest.raises(ValueError, match="t_dim must be given"):
        RRDLoss(embed_s=mlp(12))
    with pytest.raises(ValueError, match="s_dim must be 12, the width that embed_s takes; got 5"):
        RRDLoss(embed_s=nn.Linear(12, 128), s_dim=5, t_dim=4)
    criterion = RRDLoss(s_dim=4, t_dim=4, feat_dim=8, nce_k=16)
    before = criterion.embed_s
    with pytest.raises(TypeError, match="embed_s must be"):
        criterion.embed_s = None
    with pytest.raises(TypeError, match="embed_t must be"):
        criterion.memory.embed_t = torch.randn(8, 4)
    assert criterion.embed_s is before


def test_widths_are_known_where_they_are_given():
    criterion = RRDLoss(s_dim=12, embed_s=mlp(12), t_dim=4, feat_dim=16, nce_k=32)
    with pytest.raises(ValueError, match=r"f_s must be \[B, 12\]; got shape \(8, 5\)"):
        criterion(torch.randn(8, 5), torch.randn(8, 4))


def test_the_memories_take_projections_too():
    for memory in (
        FifoMemory(embed_s=mlp(12), embed_t=mlp(20), feat_dim=16, size=32),
        MomentumMemory(embed_s=mlp(12), embed_t=mlp(20), feat_dim=16, size=4, n_data=40),
    ):
        idx = torch.arange(8)
        assert memory(torch.randn(8, 12), torch.randn(8, 20), idx).isfinite()


def test_a_projection_of_both_is_trained():
    shared = mlp(12)
    criterion = RRDLoss(embed_s=shared, embed_t=shared, feat_dim=16, nce_k=32)
    criterion(torch.randn(8, 12), torch.randn(8, 12)).backward()
    assert all(weight.grad is not None for weight in shared.parameters())


def test_equal_seeds_give_equal_memories():
    """A projection that is given draws nothing."""
    torch.manual_seed(3)
    embed_t, queue = nn.Linear(6, 16), torch.randn(32, 16)
    torch.manual_seed(3)
    criterion = RRDLoss(embed_s=nn.Identity(), t_dim=6, feat_dim=16, nce_k=32)
    assert torch.equal(criterion.embed_t.weight, embed_t.weight)
    assert torch.equal(criterion.queue, F.normalize(queue, dim=0))


def test_older_layouts_keep_a_projections_own_names():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 16)

        def forward(self, x):
            return self.linear(x)

    criterion = RRDLoss(embed_s=Head(), t_dim=6, feat_dim=16, nce_k=32)
    state = criterion.state_dict()
    for layout in checkpoint.LAYOUTS:
        older = checkpoint.to_layout(state, layout)
        other = RRDLoss(embed_s=Head(), t_dim=6, feat_dim=16, nce_k=32)
        other.load_state_dict(older)
        torch.testing.assert_close(other.state_dict(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_features_are_cast_to_the_projections_dtype(dtype, device):
    criterion = RRDLoss(embed_s=mlp(12), embed_t=mlp(20), feat_dim=16, nce_k=32).to(device, dtype)
    loss = criterion(torch.randn(8, 12, device=device), torch.randn(8, 20, device=device))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_compiled_and_autocast(device):
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)  # autocast leaves float64 alone
    criterion = RRDLoss(embed_s=mlp(12), embed_t=mlp(20), feat_dim=16, nce_k=32).to(device)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    f_s, f_t = torch.randn(8, 12, device=device), torch.randn(8, 20, device=device)
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            torch.testing.assert_close(compiled(f_s, f_t), eager(f_s, f_t))
