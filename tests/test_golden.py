"""The published trainings, step by step, from numbers recorded by running the published code."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rrd_kernels import RRDLoss, checkpoint

np = pytest.importorskip("numpy")

DATA = Path(__file__).parent / "data"
FIFO = ["fifo_float64", "fifo_float32", "fifo2024_float64", "fifo2024_float32"]
RUNS = [*FIFO, "momentum_float64", "momentum_float32"]
# float64: the contract. float32: the contract too; the runs differ only in the order of sums.
LOSS_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
GRAD_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}


class Golden:
    def __init__(self, name: str, device: torch.device) -> None:
        self.arrays = np.load(DATA / f"{name}.npz")
        self.device = device
        meta = dict(item.split("=") for item in str(self.arrays["meta"][0]).split())
        self.dtype = torch.float64 if meta["dtype"].endswith("64") else torch.float32
        self.protocol = meta.get("protocol", "2025")
        self.seed = int(meta["seed"])
        self.sgd = {key: float(meta[key]) for key in ("lr", "momentum", "weight_decay")}
        self.opt = SimpleNamespace(
            s_dim=int(meta["s_dim"]),
            t_dim=int(meta["t_dim"]),
            feat_dim=int(meta["D"]),
            nce_k=int(meta["K"]),
            nce_t_s=float(meta["tau_s"]),
            nce_t_t=float(meta["tau_t"]),
            memory_type=meta["memory_type"],
        )
        if self.opt.memory_type == "momentum":
            self.opt.n_data = int(meta["n_data"])
            self.opt.nce_t, self.opt.nce_m = float(meta["nce_t"]), float(meta["nce_m"])

    def tensor(self, name: str, step: int | None = None) -> torch.Tensor:
        array = self.arrays[name] if step is None else self.arrays[name][step]
        return torch.from_numpy(array).to(self.device)

    def state(self, when: str) -> dict[str, torch.Tensor]:
        keys = [key for key in self.arrays.files if key.startswith(f"{when}.")]
        return {key.removeprefix(f"{when}."): self.tensor(key) for key in keys}

    def criterion(self, **settings: object) -> RRDLoss:
        torch.manual_seed(self.seed)
        return RRDLoss(self.opt, protocol=self.protocol, dtype=self.dtype, **settings)

    def inputs(self, step: int) -> list[torch.Tensor]:
        """What the criterion is called with beside the student's features."""
        names = [name for name in ("f_t", "idx", "contrast_idx") if name in self.arrays]
        return [self.tensor(name, step) for name in names]


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((value - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", RUNS)
def test_equal_seeds_give_the_published_state(name):
    golden = Golden(name, torch.device("cpu"))
    layout = "2025" if golden.protocol == "2025" else "2024-07"
    state = checkpoint.to_layout(golden.criterion().state_dict(), layout)
    wanted = golden.state("init")
    assert state.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", RUNS)
def test_training_follows_the_published_one(name, backend, device):
    golden = Golden(name, device)
    criterion = golden.criterion(backend=backend).to(device)
    criterion.load_state_dict(golden.state("init"), strict=True)
    optimizer = torch.optim.SGD(criterion.parameters(), **golden.sgd)
    for step, wanted in enumerate(golden.arrays["loss"]):
        f_s = golden.tensor("f_s", step).requires_grad_()
        optimizer.zero_grad()
        loss = criterion(f_s, *golden.inputs(step))
        loss.backward()
        assert loss.item() == pytest.approx(wanted, rel=LOSS_TOLERANCE[golden.dtype])
        pairs = {
            "grad_f_s": f_s.grad,
            "grad_w": criterion.embed_s.weight.grad,
            "grad_b": criterion.embed_s.bias.grad,
        }
        for key, grad in pairs.items():
            assert relative(grad, golden.tensor(key, step)) < GRAD_TOLERANCE[golden.dtype], key
        assert criterion.embed_t.weight.grad is None
        optimizer.step()
        if "queue_ptr" in golden.arrays:
            assert criterion.memory.queue_ptr.item() == golden.arrays["queue_ptr"][step]

    final = checkpoint.to_layout(
        criterion.state_dict(), "2025" if golden.protocol == "2025" else "2024-07"
    )
    for key, wanted in golden.state("final").items():
        tolerance = LOSS_TOLERANCE[golden.dtype]
        torch.testing.assert_close(final[key], wanted, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize("layout", checkpoint.LAYOUTS)
@pytest.mark.parametrize("nested", [False, True])
def test_checkpoints_of_every_layout_load(layout, nested):
    source = RRDLoss(s_dim=6, t_dim=5, feat_dim=8, nce_k=12)
    source(torch.randn(5, 6), torch.randn(5, 5))
    state = checkpoint.to_layout(source.state_dict(), layout)
    assert ("memory.queue" in state) == (layout == "2025")
    target = RRDLoss(s_dim=6, t_dim=5, feat_dim=8, nce_k=12)
    if nested:  # the published script keeps its criteria in a ModuleList
        state = {f"1.{key}": value for key, value in state.items()}
        module = torch.nn.ModuleList([torch.nn.Identity(), target])
    else:
        module = target
    before = dict(state)
    module.load_state_dict(state, strict=True)
    assert state.keys() == before.keys()
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


WRAPPINGS = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
SMALL = {"s_dim": 6, "t_dim": 5, "feat_dim": 8, "nce_k": 12}


def trained(**settings):
    """A criterion after a step."""
    criterion = RRDLoss(**SMALL | settings)
    criterion(torch.randn(5, 6), torch.randn(5, 5), torch.arange(5))
    return criterion


def moved(state, wrapping, before=""):
    """The same tensors under keys with ``wrapping`` after ``before``."""
    return {before + wrapping + key.removeprefix(before): value for key, value in state.items()}


def assert_loads(module, state, wanted):
    """With strict=True, and leaving the caller's dict alone."""
    before = dict(state)
    module.load_state_dict(state, strict=True)
    assert list(state) == list(before)
    assert all(state[key] is value for key, value in before.items())
    assert module.state_dict().keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(module.state_dict()[key], value), key


class TestWrappedStates:
    """Keys of a criterion that DDP, torch.compile or both have wrapped, in any nesting."""

    @pytest.mark.parametrize("wrapping", WRAPPINGS)
    @pytest.mark.parametrize("layout", checkpoint.LAYOUTS)
    def test_every_layout_loads(self, layout, wrapping):
        source = trained()
        state = moved(checkpoint.to_layout(source.state_dict(), layout), wrapping)
        assert_loads(RRDLoss(**SMALL), state, source.state_dict())

    @pytest.mark.parametrize("wrapping", WRAPPINGS)
    @pytest.mark.parametrize("settings", [{}, {"memory_type": "momentum", "n_data": 20}])
    def test_one_projection_that_was_wrapped(self, settings, wrapping):
        source = trained(**settings)
        wanted, head = source.state_dict(), "memory.embed_s."
        state = {
            key.replace(head, head + wrapping) if key.startswith(head) else key: value
            for key, value in wanted.items()
        }
        assert_loads(RRDLoss(**SMALL | settings), state, wanted)
        # One that is wrapped itself has the names of its own.
        compiled = RRDLoss(**SMALL | settings)
        compiled.embed_s = torch.compile(compiled.embed_s)
        compiled.load_state_dict(compiled.state_dict())

    def test_an_averaged_model_of_a_criterion_loads(self):
        averaged = torch.optim.swa_utils.AveragedModel(trained())
        wanted = averaged.module.state_dict()
        assert_loads(RRDLoss(**SMALL), averaged.state_dict(), wanted)
        assert checkpoint.to_layout(averaged.state_dict(), "2025").keys() == wanted.keys()

    @pytest.mark.parametrize("wrapping", WRAPPINGS)
    def test_the_momentum_memory_loads(self, wrapping):
        momentum = {"memory_type": "momentum", "n_data": 20}
        source = trained(**momentum)
        target = RRDLoss(**SMALL | momentum)
        assert_loads(target, moved(source.state_dict(), wrapping), source.state_dict())
        assert target.memory.contrast.standing == target.memory.contrast.standing.STALE

    @pytest.mark.parametrize("wrapping", WRAPPINGS)
    @pytest.mark.parametrize("layout", checkpoint.LAYOUTS)
    def test_a_criterion_that_was_wrapped_inside_a_module_loads(self, layout, wrapping):
        source = torch.nn.ModuleDict({"body": torch.nn.Linear(3, 3), "criterion": trained()})
        criterion = checkpoint.to_layout(source["criterion"].state_dict(), layout)
        state = {f"criterion.{wrapping}{key}": value for key, value in criterion.items()}
        state |= {f"body.{key}": value for key, value in source["body"].state_dict().items()}
        target = torch.nn.ModuleDict({"body": torch.nn.Linear(3, 3), "criterion": RRDLoss(**SMALL)})
        assert_loads(target, state, source.state_dict())

    @pytest.mark.parametrize("memory", [{}, {"memory_type": "momentum", "n_data": 20}])
    def test_a_memory_that_was_wrapped_loads(self, memory):
        source = trained(**memory)
        alone = moved(source.memory.state_dict(), "_orig_mod.")
        assert_loads(RRDLoss(**SMALL | memory).memory, alone, source.memory.state_dict())
        inside = moved(source.state_dict(), "_orig_mod.", "memory.")
        assert_loads(RRDLoss(**SMALL | memory), inside, source.state_dict())

    def test_what_pytorch_writes_loads(self):
        source = trained()
        compiled = torch.compile(torch.nn.DataParallel(torch.compile(source)))
        state = compiled.state_dict()
        assert all(key.startswith("_orig_mod.module._orig_mod.memory.") for key in state)
        assert_loads(RRDLoss(**SMALL), state, source.state_dict())
        other = torch.compile(RRDLoss(**SMALL))  # takes its own keys, and those of more wrapping
        assert_loads(other, state, torch.compile(source).state_dict())

    @pytest.mark.parametrize("layout", checkpoint.LAYOUTS)
    def test_to_layout_takes_them(self, layout):
        state = trained().state_dict()
        wanted = checkpoint.to_layout(state, layout)
        for wrapping in WRAPPINGS:
            wrapped = moved(state, wrapping)
            found = checkpoint.to_layout(wrapped, layout)
            assert list(found) == list(wanted)
            assert all(found[key] is wanted[key] for key in wanted)
            assert list(wrapped) == [wrapping + key for key in state]

    @pytest.mark.parametrize("mixture", ["some are bare", "two kinds", "two depths", "of others"])
    @pytest.mark.parametrize("layout", checkpoint.LAYOUTS)
    def test_keys_that_are_not_wrapped_alike_are_refused(self, layout, mixture):
        state = checkpoint.to_layout(trained().state_dict(), layout)
        odd = next(iter(state))
        wrapped = moved(state, "other." if mixture == "of others" else "module.")
        instead = {
            "some are bare": "",
            "two kinds": "_orig_mod.",
            "two depths": "module._orig_mod.",
        }
        if mixture in instead:
            wrapped[instead[mixture] + odd] = wrapped.pop(f"module.{odd}")
        target = RRDLoss(**SMALL)
        before = {key: value.clone() for key, value in target.state_dict().items()}
        with pytest.raises(RuntimeError, match=r"(?s)Missing key.*Unexpected key"):
            target.load_state_dict(wrapped)
        if mixture != "some are bare":
            target.load_state_dict(wrapped, strict=False)  # which takes nothing by its foreign key
            for key, value in target.state_dict().items():
                assert torch.equal(value, before[key]), key
        with pytest.raises(ValueError, match=r"RRDLoss.state_dict\(\)"):
            checkpoint.to_layout(wrapped, "2025")


@pytest.mark.parametrize("name", ["fifo_float32", "momentum_float32"])
def test_own_state_has_the_published_keys_and_shapes(name):
    golden = Golden(name, torch.device("cpu"))
    state = golden.criterion().state_dict()
    wanted = golden.state("init")
    assert list(state) == list(wanted)
    for key, value in wanted.items():
        assert state[key].shape == value.shape
        assert state[key].dtype == value.dtype


def test_layout_errors():
    momentum = RRDLoss(
        s_dim=6, t_dim=5, feat_dim=8, nce_k=12, memory_type="momentum", n_data=20
    ).state_dict()
    assert checkpoint.to_layout(momentum, "2025").keys() == momentum.keys()
    with pytest.raises(ValueError, match="no momentum memory"):
        checkpoint.to_layout(momentum, "2024-09")
    with pytest.raises(ValueError, match="layout must be one of"):
        checkpoint.to_layout({}, "2023")
    with pytest.raises(ValueError, match=r"RRDLoss.state_dict\(\)"):
        checkpoint.to_layout({"queue": torch.zeros(1)}, "2025")
    criterion = RRDLoss(s_dim=6, t_dim=5, feat_dim=8, nce_k=12)
    state = criterion.state_dict() | {"queue.extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        criterion.load_state_dict(state)
