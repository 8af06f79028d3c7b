"""CRDLoss as RepDistiller's users know it, and its trainings recorded from the published code."""

import copy
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from momentum_problems import batch_of, same_state
from torch import Tensor

from rrd_kernels import CRDLoss, RRDLoss, crd

np = pytest.importorskip("numpy")

DATA = Path(__file__).parent / "data"
SIZES = {"s_dim": 12, "t_dim": 20, "feat_dim": 16, "nce_k": 24, "n_data": 50}


class Run:
    """A recorded training of six steps."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device) -> None:
        self.name, self.dtype, self.device = name, dtype, device
        self.arrays = np.load(DATA / f"family_crd_{str(dtype).removeprefix('torch.')}.npz")
        (line,) = (m for m in map(str, self.arrays["meta"]) if m.startswith(f"run={name} "))
        meta = dict(word.split("=", 1) for word in line.split())
        self.opt = SimpleNamespace(
            **{key: int(meta[key]) for key in ("s_dim", "t_dim", "n_data")},
            **{key: float(meta[key]) for key in ("nce_t", "nce_m")},
            feat_dim=int(meta["D"]),
            nce_k=int(meta["P"]) - 1,
        )
        self.seed, self.lr = int(meta["seed"]), float(meta["lr"])
        # float64: the contract. float32: as in test_family.py, a logit is a sum of D products, each
        # of two rounded numbers, over T.
        single = 4 * (self.opt.feat_dim + 4) * 2.0**-24 / self.opt.nce_t
        self.tolerance = 1e-10 if dtype == torch.float64 else single

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{self.name}.{name}"]).to(self.device)

    def state(self, when: str) -> dict[str, Tensor]:
        prefix = f"{self.name}.{when}."
        keys = [key for key in self.arrays.files if key.startswith(prefix)]
        return {k.removeprefix(prefix): self.tensor(k.removeprefix(f"{self.name}.")) for k in keys}

    def criterion(self, **settings: object) -> CRDLoss:
        torch.manual_seed(self.seed)
        return CRDLoss(self.opt, dtype=self.dtype, **settings)

    def close(self, value: Tensor, name: str, step: int | None = None) -> None:
        """Relative to the largest number."""
        wanted = self.tensor(name) if step is None else self.tensor(name)[step]
        error = (value.detach() - wanted).abs().max() / wanted.abs().max()
        assert error <= self.tolerance, (name, step, error)


RUNS = pytest.mark.parametrize("name", ["a", "b"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])


@DTYPES
@RUNS
def test_equal_seeds_give_the_published_state_under_its_keys(name, dtype):
    run = Run(name, dtype, torch.device("cpu"))
    state, wanted = run.criterion().state_dict(), run.state("init")
    assert list(state) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("backend", ["auto", "reference"])
@DTYPES
@RUNS
def test_training_follows_the_published_one(name, dtype, backend, device):
    run = Run(name, dtype, device)
    criterion = run.criterion(backend=backend).to(device)
    criterion.load_state_dict(run.state("init"), strict=True)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=run.lr)
    for step in range(6):
        f_s, f_t = (run.tensor(key)[step].requires_grad_() for key in ("f_s", "f_t"))
        optimizer.zero_grad()
        loss = criterion(f_s, f_t, run.tensor("idx")[step], run.tensor("contrast_idx")[step])
        loss.backward()
        run.close(loss, "loss", step)
        for view, features in (("s", f_s), ("t", f_t)):
            layer = getattr(criterion, f"embed_{view}").linear
            run.close(features.grad, f"grad_f_{view}", step)
            run.close(layer.weight.grad, f"grad_w_{view}", step)
            run.close(layer.bias.grad, f"grad_b_{view}", step)
        optimizer.step()
        # Z itself: an n_data that is off by one hardly shows in the loss.
        params, wanted = criterion.contrast.params, run.tensor("params_after_first")
        assert ((params - wanted).abs() <= run.tolerance * wanted.abs()).all()
    state = criterion.state_dict()
    for key in run.state("final"):
        run.close(state[key], f"final.{key}")


def make(device="cpu", **settings):
    return CRDLoss(**(SIZES | settings)).to(device)


def test_keywords_and_opt_mean_the_same():
    opt = SimpleNamespace(**SIZES, nce_t=0.09, nce_m=0.7)
    torch.manual_seed(1)
    a = CRDLoss(opt)
    torch.manual_seed(1)
    b = make(nce_t=0.09, nce_m=0.7)
    assert same_state(a.state_dict(), b.state_dict())
    assert (a.nce_k, a.nce_t, a.nce_m) == (24, pytest.approx(0.09), pytest.approx(0.7))
    assert CRDLoss(opt, nce_m=0.1).nce_m == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"n_data must be given, as a keyword or as opt\.n_data"):
        CRDLoss(SimpleNamespace(s_dim=4, t_dim=4))
    with pytest.raises(TypeError, match="opt must be an object with attributes"):
        CRDLoss({"s_dim": 4})
    with pytest.raises(ValueError, match="cannot be spread over ranks"):
        make(gather="shard")


def test_defaults_are_the_published_ones():
    criterion = CRDLoss(s_dim=4, t_dim=4, n_data=3)
    assert (criterion.nce_k, criterion.nce_m) == (16384, 0.5)
    assert criterion.nce_t == pytest.approx(0.07)
    assert criterion.contrast.memory_v1.shape == (3, 128)


def test_keywords_reach_what_they_are_for():
    generator = torch.Generator()
    criterion = make(
        precision="float64", method="gather", backend="fused", generator=generator,
        memory_dtype=torch.bfloat16, gather="none",
    )  # fmt: skip
    assert criterion.generator is generator
    assert criterion.contrast.memory_v1.dtype == torch.bfloat16
    assert criterion.ranks.gather == "none"
    with pytest.raises(TypeError, match="process_group must be"):
        make(process_group="gloo")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crd, "sampled_contrastive_loss", lambda *_, **options: seen.append(options))
        criterion(*batch_of(), update=False)
    (options,) = seen
    del options["nce_t"]
    assert options == {"precision": "float64", "method": "gather", "backend": "fused"}


def test_feature_maps_are_flattened_as_published(device):
    criterion = make(device).eval()
    f_s, f_t, idx, contrast_idx = batch_of(device=device)
    wanted = criterion(f_s, f_t, idx, contrast_idx)
    maps = f_s.view(10, 3, 2, 2), f_t.view(10, 5, 4)
    assert torch.equal(criterion(*maps, idx, contrast_idx), wanted)
    pooled = f_s.view(10, 12, 1, 1), f_t.view(10, 20, 1, 1)
    assert torch.equal(criterion(*pooled, idx, contrast_idx), wanted)
    assert torch.equal(criterion.embed_s(pooled[0]), criterion.embed_s(f_s))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_normalizer_that_float32_does_not_hold_is_not_set(backend, device):
    criterion = make(device, nce_t=0.005, backend=backend)
    f_s, f_t, idx, contrast_idx = batch_of(device=device)
    with torch.no_grad():  # the student's own rows: exp(1 / 0.005) is 7e86
        rows = torch.nn.functional.normalize(criterion.embed_s(f_s), dim=1)
        criterion.contrast.memory_v2[idx] = rows
    assert criterion(f_s, f_t, idx, contrast_idx).isnan()
    assert criterion.contrast.params[2] == -1
    assert criterion.contrast.memory_v1.isfinite().all()


def test_embeddings_that_are_rows_of_a_memory(device):
    """The teacher's must not change while the students' rows are written."""
    identities = {"embed_s": torch.nn.Identity(), "embed_t": torch.nn.Identity()}
    found = []
    for alone in (False, True):
        torch.manual_seed(6)
        criterion = CRDLoss(n_data=50, feat_dim=16, nce_k=24, **identities).to(device)
        f_s, idx = torch.randn(4, 16, device=device), torch.arange(2, 6, device=device)
        f_t = criterion.contrast.memory_v1[2:6]
        criterion(f_s, f_t.clone() if alone else f_t, idx, torch.arange(4).view(4, 1).to(device))
        found.append(criterion.contrast.memory_v2)
    assert torch.equal(*found)


def test_a_training_step_trains_both_projections_and_moves_the_batch_s_rows(device):
    criterion = make(device)
    f_s, f_t, idx, contrast_idx = batch_of(device=device)
    idx[3] = idx[1]  # the last one wins
    before = copy.deepcopy(criterion.state_dict())
    loss = criterion(f_s, f_t, idx, contrast_idx)
    assert loss.shape == ()
    loss.backward()
    for weight in criterion.parameters():
        assert weight.grad.norm() > 0
    contrast = criterion.contrast
    for name, embed, f in (
        ("memory_v1", criterion.embed_s, f_s),
        ("memory_v2", criterion.embed_t, f_t),
    ):
        rows, old = getattr(contrast, name), before[f"contrast.{name}"]
        moved = (rows != old).any(1)
        assert moved.nonzero().flatten().tolist() == sorted(set(idx.tolist()))
        unit = torch.nn.functional.normalize(embed(f), dim=1)
        wanted = torch.nn.functional.normalize(0.5 * old[idx] + 0.5 * unit, dim=1)
        torch.testing.assert_close(rows[idx[3]], wanted[3])
    assert (contrast.params[2:4] > 0).all()
    copy.deepcopy(criterion)  # in which the published code fails, as Z has its first batch's graph


def test_a_frozen_projection_gets_no_gradient(device):
    teacher = torch.nn.Linear(20, 16).requires_grad_(False)
    criterion = make(device, embed_t=teacher)
    criterion(*batch_of(device=device)).backward()
    assert criterion.embed_t.weight.grad is None
    assert criterion.embed_s.linear.weight.grad.norm() > 0


def test_eval_and_update_false_leave_everything_alone(device):
    criterion = make(device)
    arguments = batch_of(device=device)
    for _ in range(2):  # before and after the first batch has set Z
        before = copy.deepcopy(criterion.state_dict())
        loss = criterion(*arguments, update=False)
        assert torch.equal(criterion.eval()(*arguments), loss)
        assert same_state(before, criterion.state_dict())
        assert torch.equal(criterion.train()(*arguments), loss)


def test_columns_that_are_not_given_are_drawn(device):
    criterion = make(device).eval()
    f_s, f_t, idx, _ = batch_of(device=device)
    torch.manual_seed(3)
    first, second = criterion(f_s, f_t, idx), criterion(f_s, f_t, idx)
    assert first != second
    torch.manual_seed(3)
    assert criterion(f_s, f_t, idx) == first


def test_rows_that_are_not_finite_are_never_kept(device):
    criterion = make(device)
    f_s, f_t, idx, contrast_idx = batch_of(device=device)
    f_t[2] = float("nan")
    before = copy.deepcopy(criterion.state_dict())
    criterion(f_s, f_t, idx, contrast_idx)
    assert criterion.contrast.memory_v2.isfinite().all()
    assert criterion.contrast.params[3] == -1  # this Z is the next batch's
    row = int(idx[2])
    assert torch.equal(criterion.contrast.memory_v2[row], before["contrast.memory_v2"][row])
    assert criterion(*batch_of(device=device)).isfinite()


@pytest.mark.parametrize("wrong", ["idx", "contrast_idx", "no idx", "width", "batch", "n_data"])
def test_bad_input_writes_nothing(wrong):
    criterion = make()
    f_s, f_t, idx, contrast_idx = batch_of()
    before = copy.deepcopy(criterion.state_dict())
    kind, text = ValueError, ""
    if wrong == "idx":
        idx[0], kind, text = 50, IndexError, r"idx must be in \[0, 50 = n_data\)"
    elif wrong == "contrast_idx":
        contrast_idx[0, 3], kind, text = -1, IndexError, "contrast_idx"
    elif wrong == "no idx":
        idx, text = None, "needs idx"
    elif wrong == "width":
        f_t, text = torch.randn(10, 21), "f_t"
    elif wrong == "batch":
        f_t, text = f_t[:9], "same batch size"
    else:
        with pytest.raises(ValueError, match="n_data must be"):
            make(n_data=0)
        return
    with pytest.raises(kind, match=text):
        criterion(f_s, f_t, idx, contrast_idx)
    assert same_state(before, criterion.state_dict())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_resuming_in_mid_training_is_exact(backend, device):
    batches = [batch_of(7, device) for _ in range(5)]

    def start():
        criterion = make(device, backend=backend)
        return criterion, torch.optim.SGD(criterion.parameters(), lr=0.5, momentum=0.9)

    def run(criterion, optimizer, some):
        losses = []
        for arguments in some:
            optimizer.zero_grad()
            loss = criterion(*arguments)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    criterion, optimizer = start()
    run(criterion, optimizer, batches[:2])
    file = io.BytesIO()
    torch.save((criterion.state_dict(), optimizer.state_dict()), file)
    wanted = run(criterion, optimizer, batches[2:])
    file.seek(0)
    state, momentum = torch.load(file)
    resumed, other = start()
    resumed.load_state_dict(state, strict=True)
    other.load_state_dict(momentum)
    assert run(resumed, other, batches[2:]) == wanted
    assert same_state(criterion.state_dict(), resumed.state_dict())


def test_wrappers_names_in_a_state():
    source = make()
    source(*batch_of())
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    target = make()
    target.load_state_dict(state, strict=True)
    assert same_state(source.state_dict(), target.state_dict())
    broken = dict(source.state_dict())
    broken["contrast.params"] = torch.tensor([24.0, 0.07, 0.0, 1.0, 0.5])
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match="Z_v1"):
        target.load_state_dict(broken)
    assert same_state(before, target.state_dict())


def test_settings_that_a_schedule_changes(device):
    criterion = make(device).eval()
    arguments = batch_of(device=device)
    first = criterion(*arguments)
    criterion.nce_t = 0.2
    assert criterion.contrast.params[1] == pytest.approx(0.2)
    assert criterion(*arguments) != first
    with pytest.raises(AttributeError, match="n_data cannot be changed"):
        criterion.n_data = 3
    with pytest.raises(ValueError, match="nce_t must be"):
        criterion.nce_t = 0


def test_warmup_changes_nothing(device):
    criterion = make(device)
    before = copy.deepcopy(criterion.state_dict())
    needs, loss = [], crd.sampled_contrastive_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            crd,
            "sampled_contrastive_loss",
            lambda *views, **options: (
                needs.append([z.requires_grad for z in views[:2]]) or loss(*views, **options)
            ),
        )
        criterion.warmup(4)
    assert needs == [[True, True], [False, False]]  # of training, of evaluation
    assert same_state(before, criterion.state_dict())
    assert all(weight.grad is None for weight in criterion.parameters())


def test_compiled(device):
    torch.manual_seed(2)
    eager = make(device)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    for _ in range(2):
        arguments = batch_of(6, device)
        losses = [criterion(*arguments) for criterion in (eager, compiled)]
        grads = [
            torch.autograd.grad(loss, criterion.embed_t.linear.weight)[0]
            for loss, criterion in zip(losses, (eager, compiled), strict=True)
        ]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(compiled.contrast.memory_v2, eager.contrast.memory_v2)


def test_autocast_and_half_precision_memories(device):
    criterion = make(device, memory_dtype=torch.bfloat16)
    f_s, f_t, idx, contrast_idx = batch_of(device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = criterion(f_s.bfloat16(), f_t.bfloat16(), idx, contrast_idx)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(weight.grad.isfinite().all() for weight in criterion.parameters())


def test_the_same_rows_as_the_relational_loss_draws():
    """Both memories start alike and move alike: a comparison of the losses is on equal terms."""
    torch.manual_seed(4)
    crd = make()
    torch.manual_seed(4)
    rrd = RRDLoss(memory_type="momentum", **SIZES)
    arguments = batch_of()
    for criterion in (crd, rrd):
        criterion(*arguments)
    for name in ("params", "memory_v1", "memory_v2"):
        assert torch.equal(getattr(crd.contrast, name), getattr(rrd.memory.contrast, name))
