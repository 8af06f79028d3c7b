"""The published methods that compare with a queue: numbers recorded from their own code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rrd_kernels import RelationalQueue, checkpoint
from rrd_kernels.integrations import solo_learn

np = pytest.importorskip("numpy")

DATA = Path(__file__).parent / "data"
PRESETS = {
    "moco": RelationalQueue.for_moco,
    "mocov2plus": RelationalQueue.for_moco,
    "seed": RelationalQueue.for_seed,
    "ressl": RelationalQueue.for_ressl,
    "isd": RelationalQueue.for_isd,
    "compressa": RelationalQueue.for_compress,
    "lightlyv1": RelationalQueue.for_lightly_train,
}
#: Names of the queue's layout, where they are not the method's.
LAYOUTS = {"compressa": "compress", "lightlyv1": "lightly_train"}


class Run:
    """One recorded training of six steps."""

    def __init__(self, method: str, dtype: torch.dtype, name: str, device: torch.device) -> None:
        self.method, self.dtype, self.name, self.device = method, dtype, name, device
        self.arrays = np.load(DATA / f"family_{method}_{str(dtype).removeprefix('torch.')}.npz")
        (line,) = (
            line for line in map(str, self.arrays["meta"]) if line.startswith(f"run={name} ")
        )
        meta = dict(word.split("=", 1) for word in line.split())
        self.batch, self.size, self.dim = (int(meta[key]) for key in ("B", "K", "D"))
        self.seed, self.lr = int(meta["seed"]), float(meta["lr"])
        self.drawn = meta["init_from_seed"] == "yes"
        self.settings = {k: float(meta[k]) for k in ("tau_s", "tau_t") if k in meta}
        # float64: the contract. float32: a logit is a sum of D products, each of two rounded
        # numbers, over tau; the largest probabilities err by twice that, here and in the recording.
        # At SEED's 1e-4 the target is one-hot, whatever its logits are rounded to.
        tau = min(value for value in self.settings.values() if value > 1e-3)
        single = 4 * (self.dim + 4) * 2.0**-24 / tau
        self.tolerance = 1e-10 if dtype == torch.float64 else single
        self.layout = LAYOUTS.get(method, method)
        self.views = 2 if method == "mocov2plus" else 1

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{self.name}.{name}"]).to(self.device)

    def published_queue(self, when: str) -> dict[str, Tensor]:
        """The queue before the first or after the last step, under its published keys."""
        form = checkpoint.QUEUE_LAYOUTS[self.layout]
        state = {form.rows: self.tensor(f"queue_{when}")}
        if form.has_pointer:
            ptr = self.tensor("queue_ptr")[-1] if when == "final" else torch.tensor(0)
            state["queue_ptr"] = ptr.reshape(1)
        return state

    def queues(self, **settings: object) -> list[RelationalQueue]:
        """The method's queues, one for each view, in the recorded initial state."""
        published = self.published_queue("init")
        found = []
        for view in range(self.views):
            torch.manual_seed(self.seed)
            settings = {"dtype": self.dtype, **self.settings, **settings}
            queue = PRESETS[self.method](self.dim, self.size, **settings)
            queue.load_state_dict(checkpoint.queue_state(published, self.layout, view=view))
            found.append(queue.to(self.device))
        return found

    def weights(self) -> list[Tensor]:
        names = ["w", "b"] if f"{self.name}.b_init" in self.arrays else ["w"]
        return [self.tensor(f"{name}_init").clone() for name in names]

    def steps(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """x, z_t, the loss and the gradient of z_s; one view of two on the first axis."""
        yield from zip(*map(self.tensor, ("x", "z_t", "loss", "grad_z_s")), strict=True)


def found_runs() -> list[object]:
    runs = []
    for method in PRESETS:
        with np.load(DATA / f"family_{method}_float64.npz") as arrays:
            names = [str(line).split()[0].removeprefix("run=") for line in arrays["meta"]]
        runs += [pytest.param(method, name, id=f"{method}-{name}") for name in names]
    return runs


RUNS = pytest.mark.parametrize(("method", "name"), found_runs())
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])


def close(value: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Relative to the largest number."""
    error = (value - wanted).abs().max() / wanted.abs().max()
    assert error <= tolerance, error


def as_given(states: list[dict[str, Tensor]]) -> object:
    return states[0] if len(states) == 1 else states


def loss_of(queues: list[RelationalQueue], z_s: Tensor, z_t: Tensor) -> Tensor:
    if len(queues) == 1:
        return queues[0](z_s, z_t)
    # Queue v holds the keys of view v; the other view's queries are compared with them.
    return (queues[1](z_s[0], z_t[1]) + queues[0](z_s[1], z_t[0])) / 2


@pytest.mark.parametrize("backend", ["auto", "reference"])
@DTYPES
@RUNS
def test_training_follows_the_published_one(method, name, dtype, backend, device):
    run = Run(method, dtype, name, device)
    queues, weights = run.queues(backend=backend), run.weights()
    for x, z_t, loss, grad in run.steps():
        leaves = [weight.clone().requires_grad_() for weight in weights]
        z_s = x @ leaves[0].T + (leaves[1] if len(leaves) > 1 else 0)
        z_s.retain_grad()
        found = loss_of(queues, z_s, z_t)
        found.backward()
        close(found.detach(), loss, run.tolerance)
        close(z_s.grad, grad, run.tolerance)
        weights = [w - run.lr * leaf.grad for w, leaf in zip(weights, leaves, strict=True)]
    close(weights[0], run.tensor("w_final"), run.tolerance)
    states = [queue.state_dict() for queue in queues]
    written = checkpoint.to_queue_layout(as_given(states), run.layout)
    wanted = run.published_queue("final")
    if run.layout == "compress":  # written from the oldest row on: that of the next slot
        ptr = int(run.tensor("queue_ptr")[-1])
        assert int(states[0]["queue_ptr"]) == ptr
        wanted = {key: rows.roll(-ptr, 0) for key, rows in wanted.items()}
    assert written.keys() == wanted.keys()
    for key, value in wanted.items():
        if key == "queue_ptr":
            assert torch.equal(written[key], value)
        else:
            close(written[key], value, 1e-12 if dtype == torch.float64 else 1e-6)


@DTYPES
@RUNS
def test_equal_seeds_give_the_published_start(method, name, dtype):
    run = Run(method, dtype, name, torch.device("cpu"))
    torch.manual_seed(run.seed)
    queue = PRESETS[method](run.dim, run.size, dtype=dtype)
    for view in range(run.views):
        wanted = checkpoint.queue_state(run.published_queue("init"), run.layout, view=view)
        if run.drawn or method == "lightlyv1":
            assert torch.equal(queue.queue, wanted["queue"])
        else:  # drawn after the encoders: what has norm 1 tells the start
            unit = 0 if method == "isd" else 1
            for rows in (queue.queue, wanted["queue"]):
                close(rows.norm(dim=unit), torch.ones(()), 1e-6)


@DTYPES
@RUNS
def test_the_published_layout_is_read_and_written(method, name, dtype):
    """As it is, and inside a whole checkpoint under the names of a wrapper."""
    run = Run(method, dtype, name, torch.device("cpu"))
    published = run.published_queue("final")
    wrapped = {f"module.{key}": value for key, value in published.items()}
    nested = {"epoch": 3, "state_dict": {**wrapped, "module.encoder_q.weight": torch.zeros(1)}}
    states = []
    for view in range(run.views):
        state = checkpoint.queue_state(published, run.layout, view=view)
        again = checkpoint.queue_state(nested, run.layout, view=view)
        assert all(torch.equal(state[key], again[key]) for key in ("queue", "queue_ptr"))
        queue = PRESETS[method](run.dim, run.size, dtype=dtype)
        queue.load_state_dict(state)
        states.append(queue.state_dict())
    written = checkpoint.to_queue_layout(as_given(states), run.layout)
    assert written.keys() == published.keys()
    for key, value in published.items():
        assert torch.equal(written[key], value), key


@pytest.mark.parametrize("name", ["a", "b"])
def test_solo_learns_functions_take_the_place_of_its_own(name, device):
    """Its method keeps its queue and its enqueue; only the loss is replaced."""
    run = Run("mocov2plus", torch.float64, name, device)
    queue, ptr = run.tensor("queue_init").clone(), 0
    (weight,) = run.weights()
    for x, z_t, loss, grad in run.steps():
        leaf = weight.clone().requires_grad_()
        z_s = x @ leaf.T
        z_s.retain_grad()
        (q1, q2), (k1, k2) = (torch.nn.functional.normalize(z, dim=-1) for z in (z_s, z_t))
        tau = run.settings["tau_s"]
        first = solo_learn.mocov2plus_loss_func(q1, k2, queue[1], tau)
        found = (first + solo_learn.mocov2plus_loss_func(q2, k1, queue[0], tau)) / 2
        found.backward()
        close(found.detach(), loss, 1e-10)
        close(z_s.grad, grad, 1e-10)
        queue[:, :, ptr : ptr + run.batch] = torch.stack((k1, k2)).permute(0, 2, 1)
        ptr = (ptr + run.batch) % run.size
        weight = weight - run.lr * leaf.grad


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_solo_learns_ressl(name, device):
    """With its queue, [K, D], the numbers are those of the authors' own code."""
    run = Run("ressl", torch.float64, name, device)
    queue, ptr = run.tensor("queue_init").T.contiguous(), 0
    (weight,), taus = run.weights(), (run.settings["tau_s"], run.settings["tau_t"])
    for x, z_t, loss, grad in run.steps():
        leaf = weight.clone().requires_grad_()
        z_s = x @ leaf.T
        z_s.retain_grad()
        q, k = (torch.nn.functional.normalize(z, dim=-1) for z in (z_s, z_t))
        found = solo_learn.ressl_loss_func(q, k, queue, *taus)
        found.backward()
        close(found.detach(), loss, 1e-10)
        close(z_s.grad, grad, 1e-10)
        queue[ptr : ptr + run.batch] = k
        ptr = (ptr + run.batch) % run.size
        weight = weight - run.lr * leaf.grad


def test_solo_learns_queue_of_ressl_is_read_as_it_is():
    run = Run("ressl", torch.float64, "a", torch.device("cpu"))
    rows = run.tensor("queue_final").T.contiguous()
    state = {"queue": rows, "queue_ptr": torch.tensor([48]), "backbone.weight": rows}
    read = checkpoint.queue_state({"state_dict": state}, "solo_ressl")
    assert torch.equal(read["queue"], rows)
    written = checkpoint.to_queue_layout(read, "solo_ressl")
    assert written.keys() == {"queue", "queue_ptr"}
    assert torch.equal(written["queue"], rows)


def shifted(queue: Tensor, keys: Tensor) -> Tensor:
    """LightlyTrain's update of its queue, from its description."""
    return torch.cat([keys, queue])[: len(queue)]


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (10, 3, 7, 1, 11, 16), (20, 5, 33, 16)])
def test_a_ring_that_grows_downwards_is_a_queue_that_shifts(sizes, device):
    """Batches of any size, also more rows than the queue has, and the order too."""
    ring = RelationalQueue.for_lightly_train(4, 16, dtype=torch.float64).to(device)
    wanted = torch.zeros(16, 4, dtype=torch.float64, device=device)
    for size in sizes:
        z_t = torch.randn(size, 4, dtype=torch.float64, device=device)
        ring(z_t, z_t)
        wanted = shifted(wanted, torch.nn.functional.normalize(z_t, dim=1))
        ptr = int(ring.queue_ptr)
        close(torch.cat([ring.queue[ptr:], ring.queue[:ptr]]), wanted, 1e-15)


def test_bad_input():
    refuse = pytest.raises
    with refuse(ValueError, match="positive and finite; got 0.0. A hard target, 0, needs own_pair"):
        RelationalQueue(8, 16, tau_t=0.0)
    with refuse(ValueError, match="tau_t must be positive and finite, or 0"):
        RelationalQueue(8, 16, tau_t=-1.0, own_pair=True)
    with refuse(TypeError, match="own_pair must be True or False; got 'yes'"):
        RelationalQueue(8, 16, own_pair="yes")
    with refuse(ValueError, match="start must be one of .*'unit_columns'.*; got 'ones'"):
        RelationalQueue(8, 16, start="ones")
    with refuse(ValueError, match="divergence must be one of"):
        RelationalQueue(8, 16, divergence="js")
    with refuse(TypeError, match="newest_first must be True or False"):
        RelationalQueue(8, 16, newest_first=1)
    with refuse(ValueError, match="dim must be at least 1"):
        RelationalQueue(0)
    with refuse(ValueError, match="dtype must be one of"):
        RelationalQueue(8, 16, dtype=torch.int32)
    with refuse(ValueError, match="own_pair=True needs enqueue='after'"):
        RelationalQueue(8, 16, own_pair=True, enqueue="before")
    with refuse(ValueError, match="own_pair=True needs enqueue='after'"):
        RelationalQueue.for_moco(8, 16).enqueue = "before"
    queue = RelationalQueue.for_ressl(8, 16)
    before = {key: value.clone() for key, value in queue.state_dict().items()}
    with refuse(ValueError, match=r"z_s must be \[B, 8\]; got shape \(4, 9\)"):
        queue(torch.randn(4, 9), torch.randn(4, 8))
    with refuse(ValueError, match=r"z_t must be \[B, 8\]; got shape \(4, 7\)"):
        queue(torch.randn(4, 8), torch.randn(4, 7))
    with refuse(ValueError, match="z_s and z_t must have the same batch size"):
        queue(torch.randn(4, 8), torch.randn(5, 8))
    with refuse(ValueError, match=r"of 17 rows does not fit .* make the memory \(size\) larger"):
        queue(torch.randn(17, 8), torch.randn(17, 8))
    with refuse(ValueError, match="needs own_pair=True"):
        queue(torch.randn(4, 8), torch.randn(4, 8), tau_t=0.0)
    with refuse(ValueError, match="needs own_pair=True"):
        queue.tau_t = 0.0
    for name, value in {"own_pair": True, "newest_first": True, "dim": 9, "size": 9}.items():
        with refuse(AttributeError, match=f"{name} cannot be changed"):
            setattr(queue, name, value)
    for key, value in queue.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("bad", [{"tau_s": -1.0}, {"tau_t": 0.0}, {"tau_s": "a"}])
def test_bad_input_of_more_samples_than_rows(bad):
    queue = RelationalQueue.for_lightly_train(8, 16)
    before = {key: value.clone() for key, value in queue.state_dict().items()}
    with pytest.raises((TypeError, ValueError), match="tau_"):
        queue(torch.randn(30, 8), torch.randn(30, 8), **bad)
    for key, value in queue.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_more_samples_than_rows_that_are_rows_of_the_queue(backend):
    """They must not change while the queue is written."""
    queue, other = (RelationalQueue.for_lightly_train(8, 16, backend=backend) for _ in range(2))
    queue(torch.randn(16, 8), torch.randn(16, 8))
    other.load_state_dict(queue.state_dict())
    z_t = torch.randn(20, 8)
    loss = queue(queue.queue[3:4].expand(20, 8), z_t)
    assert torch.equal(loss, other(other.queue[3:4].clone().expand(20, 8), z_t))


def test_bad_checkpoints():
    state = RelationalQueue.for_moco(8, 16).state_dict()
    refuse = pytest.raises
    with refuse(ValueError, match="layout must be one of 'moco'"):
        checkpoint.queue_state(state, "dino")
    with refuse(ValueError, match="lacks .'teacher_queue'."):
        checkpoint.queue_state(state, "lightly_train")
    with refuse(ValueError, match=r"queue must have 3 dimensions .*got shape \(16, 8\)"):
        checkpoint.queue_state(state, "mocov2plus")
    with refuse(ValueError, match=r"view must be in \[0, 1\)"):
        checkpoint.queue_state(state, "moco", view=1)
    with refuse(ValueError, match="2 queue.*got 1"):
        checkpoint.to_queue_layout(state, "mocov2plus")
    with refuse(ValueError, match="both queues must be at one slot"):
        moved = state | {"queue_ptr": torch.tensor([3])}
        checkpoint.to_queue_layout((state, moved), "mocov2plus")
    with refuse(ValueError, match="with queue and queue_ptr; got the keys .'memory.queue'."):
        checkpoint.to_queue_layout({"memory.queue": state["queue"]}, "moco")
    with refuse(ValueError, match="no key that names a queue"):
        checkpoint.queue_state({"state_dict": {"module.encoder.weight": state["queue"]}}, "moco")
    with refuse(TypeError, match="queue must be a Tensor"):
        checkpoint.queue_state({"queue": None, "queue_ptr": state["queue_ptr"]}, "moco")
