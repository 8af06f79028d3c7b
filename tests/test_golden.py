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
