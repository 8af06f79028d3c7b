"""RRDLoss(memory_type="momentum") as people use it."""

import copy
import io
import math
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from emulated import EMULATED
from momentum_problems import SIMILARITIES, batch_of, same_state

from rrd_kernels import MomentumMemory, RRDLoss

SIZES = {
    "memory_type": "momentum",
    "s_dim": 12,
    "t_dim": 20,
    "feat_dim": 16,
    "nce_k": 24,
    "n_data": 50,
}
KEYS = [
    "memory.embed_s.weight",
    "memory.embed_s.bias",
    "memory.embed_t.weight",
    "memory.embed_t.bias",
    "memory.contrast.params",
    "memory.contrast.memory_v1",
    "memory.contrast.memory_v2",
]


def make(device="cpu", **settings):
    return RRDLoss(**(SIZES | settings)).to(device)


def test_opt_and_keywords_mean_the_same():
    opt = SimpleNamespace(**SIZES, nce_t=0.09, nce_m=0.7, nce_t_s=0.2, nce_t_t=0.03)
    torch.manual_seed(1)
    a = RRDLoss(opt)
    torch.manual_seed(1)
    b = make(nce_t=0.09, nce_m=0.7)
    assert list(a.state_dict()) == KEYS
    assert same_state(a.state_dict(), b.state_dict())
    assert isinstance(a.memory, MomentumMemory)
    assert a.memory.contrast.nce_t == pytest.approx(0.09)
    assert RRDLoss(opt, nce_m=0.1).memory.contrast.nce_m == pytest.approx(0.1)


def test_a_training_step_moves_the_batch_s_rows_and_no_others(device):
    criterion = make(device)
    f_s, f_t, idx, contrast_idx = batch_of(device=device)
    before = copy.deepcopy(criterion.state_dict())
    criterion(f_s, f_t, idx, contrast_idx).backward()
    contrast = criterion.memory.contrast
    for name in ("memory_v1", "memory_v2"):
        moved = (getattr(contrast, name) != before[f"memory.contrast.{name}"]).any(1)
        assert moved.nonzero().flatten().tolist() == sorted(idx.tolist())
        torch.testing.assert_close(
            getattr(contrast, name)[idx].norm(dim=1), torch.ones(10, device=device)
        )
    assert (contrast.params[2:4] > 0).all()
    assert f_s.grad.norm() > 0
    assert criterion.embed_s.weight.grad.norm() > 0
    assert criterion.embed_t.weight.grad is None


def test_z_is_that_of_the_first_batch(device):
    criterion = make(device)
    criterion(*batch_of(device=device))
    params = criterion.memory.contrast.params.clone()
    criterion(*batch_of(7, device))
    assert torch.equal(criterion.memory.contrast.params, params)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_eval_leaves_everything_alone(similarity, device):
    criterion = make(device, similarity=similarity)
    arguments = batch_of(device=device)
    for _ in range(2):  # before and after the first batch has set Z
        criterion.eval()
        before = copy.deepcopy(criterion.state_dict())
        loss = criterion(*arguments)
        assert loss.isfinite()
        assert same_state(before, criterion.state_dict())
        criterion.train()
        # Z is this batch's in both: what evaluation computes is what training would.
        torch.testing.assert_close(criterion(*arguments), loss)


def test_negatives_that_are_not_given_are_drawn(device):
    criterion = make(device, similarity="cosine").eval()
    f_s, f_t, idx, _ = batch_of(device=device)
    torch.manual_seed(3)
    first, second = criterion(f_s, f_t, idx), criterion(f_s, f_t, idx)
    assert first != second
    torch.manual_seed(3)
    assert criterion(f_s, f_t, idx) == first
    criterion.memory.generator = torch.Generator(device).manual_seed(5)
    third = criterion(f_s, f_t, idx)
    torch.manual_seed(3)  # which no longer matters
    criterion.memory.generator.manual_seed(5)
    assert criterion(f_s, f_t, idx) == third != first


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_resuming_in_mid_training_is_exact(similarity, backend, device):
    batches = [batch_of(7, device) for _ in range(5)]

    def run(criterion, optimizer, some):
        losses = []
        for arguments in some:
            optimizer.zero_grad()
            loss = criterion(*arguments)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def start():
        criterion = make(device, similarity=similarity, backend=backend)
        return criterion, torch.optim.SGD(criterion.parameters(), lr=0.1, momentum=0.9)

    torch.manual_seed(0)
    criterion, optimizer = start()
    run(criterion, optimizer, batches[:2])
    file = io.BytesIO()
    torch.save({"c": criterion.state_dict(), "o": optimizer.state_dict()}, file)
    wanted = run(criterion, optimizer, batches[2:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, optimizer = start()
    other.load_state_dict(saved["c"], strict=True)
    optimizer.load_state_dict(saved["o"])
    assert run(other, optimizer, batches[2:]) == wanted
    assert same_state(criterion.state_dict(), other.state_dict())


def test_a_state_brings_its_own_constants():
    source = make(nce_t=0.2, nce_m=0.9, nce_k=8)
    target = make()
    target.load_state_dict(source.state_dict())
    contrast = target.memory.contrast
    assert (contrast.size, contrast.nce_t, contrast.nce_m) == (
        8,
        pytest.approx(0.2),
        pytest.approx(0.9),
    )


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, float("nan"), r"params\[0\] must be K"),
        (0, -1.0, r"params\[0\] must be K"),
        (1, 0.0, r"params\[1\] \(nce_t\) must be positive"),
        (4, 1.0, r"params\[4\] \(nce_m\) must be in"),
    ],
)
def test_a_state_with_bad_constants_is_refused_whole(place, value, text):
    state = make().state_dict()
    state["memory.contrast.params"] = state["memory.contrast.params"].clone()
    state["memory.contrast.params"][place] = value
    criterion = make()
    before = copy.deepcopy(criterion.memory.contrast.state_dict())
    with pytest.raises(ValueError, match=text):
        criterion.load_state_dict(state)
    assert same_state(criterion.memory.contrast.state_dict(), before)


def test_a_half_precision_state_is_loaded_into_float32():
    state = {key: value.half() for key, value in make().state_dict().items()}
    criterion = make()
    criterion.load_state_dict(state, assign=True)
    assert criterion.memory.contrast.params.dtype == torch.float32
    assert criterion.memory.contrast.memory_v1.dtype == torch.float16


def test_copies_and_pickles():
    criterion = make()
    criterion(*batch_of())
    arguments = batch_of()
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert same_state(criterion.state_dict(), other.state_dict())
        assert torch.equal(other.eval()(*arguments), copy.deepcopy(criterion).eval()(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves(dtype, device):
    criterion = make(device).to(dtype)
    # Z, near n_data times a mean, would not fit float16, nor its digits bfloat16.
    assert criterion.memory.contrast.params.dtype == torch.float32
    assert criterion.memory.contrast.memory_v1.dtype == dtype
    f_s, f_t, idx, contrast_idx = batch_of(device=device, dtype=dtype)
    loss = criterion(f_s, f_t, idx, contrast_idx)
    loss.backward()
    assert loss.isfinite()
    assert f_s.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_memories_in_half_beside_float32_weights(dtype, device):
    criterion = make(device, memory_dtype=dtype)
    criterion(*batch_of(device=device)).backward()
    assert criterion.memory.contrast.memory_v2.dtype == dtype
    assert criterion.embed_s.weight.grad.isfinite().all()


def test_autocast(device):
    plain = make(device)
    twin = copy.deepcopy(plain)
    arguments = batch_of(device=device)
    wanted = plain(*arguments)
    with torch.autocast(device.type, torch.bfloat16):
        loss = twin(*arguments)
    loss.backward()
    # The projections are rounded to bfloat16; ln P is far above what that changes.
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=2.0**-5, atol=0)


@pytest.mark.skipif(EMULATED, reason="what compiles is the same there")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_steps(backend, similarity, device):
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    criterion = make(device, similarity=similarity)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    for batch in (10, 10, 7):
        f_s, *others = batch_of(batch, device)
        twin = f_s.detach().clone().requires_grad_()
        loss, wanted = compiled(f_s, *others), eager(twin, *others)
        loss.backward()
        wanted.backward()
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(f_s.grad, twin.grad)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(criterion.state_dict()[key], value, msg=key)


def test_compiled_with_negatives_of_its_own_and_batches_of_several_sizes():
    torch.compiler.reset()
    criterion = make()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for batch in (10, 7, 1):
        f_s, f_t, idx, _ = batch_of(batch)
        assert compiled(f_s, f_t, idx).isfinite()
    # A number that changes becomes a symbol.
    criterion.load_state_dict(make(nce_t=0.2).state_dict())
    assert compiled(*batch_of(7)).isfinite()


def test_warmup_changes_nothing(device):
    criterion = make(device)
    before = copy.deepcopy(criterion.state_dict())
    criterion.warmup(10)
    assert same_state(before, criterion.state_dict())


def test_any_batch_even_one_with_a_sample_twice(device):
    criterion = make(device)
    for batch in (1, 50, 3):
        criterion(*batch_of(batch, device)).backward()
    f_s, f_t, idx, contrast_idx = batch_of(4, device)
    idx[3] = idx[0]
    criterion(f_s, f_t, idx, contrast_idx).backward()
    empty = [value[:0] for value in batch_of(4, device)]
    assert criterion(*empty).item() == 0


def test_the_loss_stays_at_ln_p_under_the_published_similarity(device):
    criterion = make(device, n_data=5000, nce_k=255)
    f_s, f_t, idx, _ = batch_of(device=device)
    assert abs(criterion(f_s, f_t, idx).item() - math.log(256)) < 0.1


class TestBadInput:
    @pytest.fixture
    def criterion(self):
        criterion = make()
        before = copy.deepcopy(criterion.state_dict())
        yield criterion
        assert same_state(before, criterion.state_dict())

    def refused(self, criterion, kind, *parts, **replaced):
        names = ("f_s", "f_t", "idx", "contrast_idx")
        arguments = dict(zip(names, batch_of(), strict=True)) | replaced
        with pytest.raises(kind, match=".*".join(re.escape(part) for part in parts)):
            criterion(**arguments)

    def test_no_idx(self, criterion):
        self.refused(criterion, ValueError, "needs idx", idx=None)

    @pytest.mark.parametrize("name", ["idx", "contrast_idx"])
    def test_indices_of_another_type(self, criterion, name):
        value = batch_of()[3] if name == "contrast_idx" else batch_of()[2]
        for wrong in (value.float(), value.bool(), value.cfloat(), value.tolist()):
            self.refused(criterion, TypeError, name, "int64", **{name: wrong})

    def test_indices_of_another_shape(self, criterion):
        idx, contrast_idx = batch_of()[2:]
        self.refused(criterion, ValueError, "idx must be [10]", "(9,)", idx=idx[:9])
        self.refused(criterion, ValueError, "idx must be [10]", "(10, 1)", idx=idx[:, None])
        self.refused(criterion, ValueError, "[10, P]", "(9, 25)", contrast_idx=contrast_idx[:9])
        self.refused(criterion, ValueError, "[10, P]", "(10,)", contrast_idx=idx)
        self.refused(criterion, ValueError, "got P = 0", contrast_idx=contrast_idx[:, :0])

    @pytest.mark.skipif(EMULATED, reason="as on a GPU, there is no error")
    @pytest.mark.parametrize("wrong", [-1, 50])
    @pytest.mark.parametrize("name", ["idx", "contrast_idx"])
    def test_indices_out_of_range(self, criterion, name, wrong):
        value = batch_of()[2 if name == "idx" else 3]
        value[(3, 5)[: value.dim()]] = wrong
        self.refused(criterion, IndexError, name, str(wrong), **{name: value})

    @pytest.mark.parametrize("name", ["tau_s", "tau_t"])
    def test_temperatures(self, criterion, name):
        settings = {"tau_s": 0.1, "tau_t": 0.02, name: -1.0}
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            criterion.memory(*batch_of(), **settings)

    def test_features(self, criterion):
        self.refused(criterion, ValueError, "f_s", "[B, 12]", f_s=torch.randn(10, 11))
        self.refused(criterion, ValueError, "same batch size", f_t=torch.randn(9, 20))
        self.refused(criterion, TypeError, "f_t", "floating", f_t=torch.ones(10, 20).long())


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"n_data": None}, ValueError, "n_data must be given"),
        ({"n_data": 0}, ValueError, "at least 1"),
        ({"n_data": 5.0}, TypeError, "must be an int"),
        ({"nce_t": 0.0}, ValueError, "nce_t must be positive"),
        ({"nce_t": float("nan")}, ValueError, "nce_t must be positive"),
        ({"nce_m": 1.0}, ValueError, r"nce_m must be in \[0, 1\)"),
        ({"similarity": "euclid"}, ValueError, "similarity must be one of"),
        ({"method": "sparse"}, ValueError, "method must be one of"),
        ({"backend": "gpu"}, ValueError, "backend must be one of"),
        ({"precision": "int8"}, ValueError, "precision must be one of"),
        ({"enqueue": "before"}, ValueError, "'momentum' does not take enqueue"),
        ({"slot_momentum": 0.5}, ValueError, "'momentum' does not take slot_momentum"),
        ({"protocol": "2024"}, ValueError, "'2024' has no momentum memory"),
        ({"memory_type": "fifo"}, ValueError, "'fifo' does not take n_data"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings, kind, text):
    with pytest.raises(kind, match=text):
        make(**settings)
