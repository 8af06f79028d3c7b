"""Settings that are changed between steps, under the published names too."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from rrd_kernels import RRDLoss, reference
from rrd_kernels.functional import relational_step_


@pytest.fixture(autouse=True)
def in_float64():
    """In which the default tolerance of assert_close, 1e-7, is far above rounding, 1e-16 of a
    number times at most 1 / tau, and far below what a setting that is ignored would change."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


KINDS = {
    "fifo": {"nce_k": 32},
    "momentum": {"memory_type": "momentum", "n_data": 40, "nce_k": 6},
    "cosine": {"memory_type": "momentum", "n_data": 40, "nce_k": 6, "similarity": "cosine"},
}


def made(kind, device="cpu", **options):
    torch.manual_seed(0)
    return RRDLoss(s_dim=12, t_dim=20, feat_dim=16, **KINDS[kind], device=device, **options)


def inputs(kind, device="cpu"):
    features = torch.randn(6, 12, device=device), torch.randn(6, 20, device=device)
    if kind == "fifo":
        return features
    columns = torch.randint(40, (6, 7), device=device)
    return *features, columns[:, 0].contiguous(), columns


def embeddings(criterion, f_s, f_t):
    return criterion.embed_s(f_s), criterion.embed_t(f_t)


def expected(criterion, tau_s, tau_t, f_s, f_t, idx=None, columns=None, nce_t=None):
    """The loss of an evaluation, by the reference."""
    z_s, z_t = embeddings(criterion, f_s, f_t)
    if idx is None:
        return reference.relational_loss(z_s, z_t, criterion.memory.queue, tau_s=tau_s, tau_t=tau_t)
    rows = criterion.memory.contrast
    views, normalizers = (z_s, z_t, rows.memory_v1, rows.memory_v2, columns), None
    if criterion.memory.similarity == "exponential":
        normalizers = rows.params[2:4].clone()
        reference.estimate_normalizers_(normalizers, *views, nce_t=nce_t)
    options = {"tau_s": tau_s, "tau_t": tau_t, "nce_t": nce_t or 0.07}
    return reference.sampled_relational_loss(*views, normalizers, **options)


@pytest.mark.parametrize("owner", ["criterion", "memory"])
@pytest.mark.parametrize("names", [("tau_s", "tau_t"), ("nce_t_s", "nce_t_t")], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_temperatures_take_effect(kind, names, owner, device):
    criterion = made(kind, device).eval()
    batch = inputs(kind, device)
    before = criterion(*batch)
    target = criterion if owner == "criterion" else criterion.memory
    for name, value in zip(names, (0.31, 0.23), strict=True):
        setattr(target, name, value)
        assert getattr(criterion, name) == getattr(criterion.memory, name) == value
    nce_t = None if kind == "fifo" else criterion.nce_t
    wanted = expected(criterion, 0.31, 0.23, *batch, nce_t=nce_t)
    found = criterion(*batch)
    torch.testing.assert_close(found, wanted)
    assert found != before


@pytest.mark.parametrize("name", ["tau_s", "nce_t_t"])
@pytest.mark.parametrize(("value", "error"), [(0.0, ValueError), ("0.1", TypeError)])
def test_a_bad_temperature_is_refused_when_it_is_set(name, value, error):
    criterion = made("fifo")
    with pytest.raises(error, match="tau_"):
        setattr(criterion, name, value)
    assert (criterion.tau_s, criterion.tau_t) == (0.1, 0.02)


@pytest.mark.parametrize("how", ["params", "data", "attribute", "criterion", "new params"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_params_of_the_momentum_memory_take_effect(backend, how, device):
    criterion = made("momentum", device, backend=backend, nce_t=0.5)
    rows = criterion.memory.contrast
    criterion(*inputs("momentum", device))  # sets Z
    values = {"nce_t": (1, 0.9), "nce_m": (4, 0.25)}
    for name, (place, value) in values.items():
        if how == "params":
            rows.params[place] = value
        elif how == "data":  # which counts as no write: on a CPU the numbers are compared
            rows.params.data[place] = value
            if device.type != "cpu":
                rows.params.add_(0)
        elif how == "attribute":
            setattr(rows, name, value)
        elif how == "criterion":
            setattr(criterion, name, value)
        else:
            params = rows.params.clone()
            params[place] = value
            rows.params = params
    f_s, f_t, idx, columns = inputs("momentum", device)
    wanted_rows = rows.memory_v1.clone()
    z_s, _ = embeddings(criterion, f_s, f_t)
    wanted = expected(criterion, 0.1, 0.02, f_s, f_t, idx, columns, nce_t=0.9)
    reference.momentum_update_(wanted_rows, idx, z_s, 0.25)
    torch.testing.assert_close(criterion(f_s, f_t, idx, columns), wanted)
    torch.testing.assert_close(rows.memory_v1, wanted_rows)
    assert rows.params[[1, 4]].tolist() == pytest.approx([0.9, 0.25])  # as a checkpoint has them
    assert rows.nce_m == criterion.nce_m == 0.25


def test_another_number_of_negatives(device):
    criterion = made("momentum", device)
    rows, idx = criterion.memory.contrast, torch.arange(6, device=device)
    drawn = []
    for attribute in ("K", "size"):
        setattr(rows, attribute, 9 if attribute == "K" else 3)
        drawn.append(criterion.memory.draw(idx).shape)
    assert drawn == [(6, 10), (6, 4)]
    rows.params[0] = 12
    criterion(torch.randn(6, 12, device=device), torch.randn(6, 20, device=device), idx)
    assert rows.K == rows.size == criterion.nce_k == 12
    rows.params[0] = 1.5
    state = copy.deepcopy(criterion.state_dict())
    with pytest.raises(ValueError, match=r"positive whole number; got 1\.5"):
        criterion(*inputs("momentum", device))
    for key, value in criterion.state_dict().items():
        assert torch.equal(value, state[key])


def test_settings_of_a_memory_are_the_criterions_too(device):
    criterion = made("fifo", device)
    criterion.backend, criterion.enqueue, criterion.slot_momentum = "reference", "after", 0.5
    memory = criterion.memory
    assert (memory.backend, memory.enqueue, memory.slot_momentum) == ("reference", "after", 0.5)
    queue, ptr = criterion.queue.clone(), criterion.queue_ptr.clone()
    f_s, f_t = inputs("fifo", device)
    z_s, z_t = embeddings(criterion, f_s, f_t)
    options = {"enqueue": "after", "momentum": 0.5}
    wanted = reference.relational_step_(z_s, z_t, queue, ptr, **options)
    torch.testing.assert_close(criterion(f_s, f_t), wanted)
    torch.testing.assert_close(criterion.queue, queue)
    with pytest.raises(ValueError, match="enqueue must be one of 'before', 'after'; got 'never'"):
        criterion.enqueue = "never"
    with pytest.raises(ValueError, match="similarity must be one of"):
        made("cosine").memory.similarity = "dot"


@pytest.mark.parametrize("owner", ["criterion", "memory"])
@pytest.mark.parametrize("name", ["nce_k", "n_data", "feat_dim", "protocol", "gather", "size"])
def test_what_is_fixed_says_so(name, owner):
    criterion = made("fifo")
    with pytest.raises(AttributeError, match=name):
        setattr(criterion if owner == "criterion" else criterion.memory, name, 64)


def test_the_published_draw_is_refused():
    with pytest.raises(AttributeError, match=r"multinomial does not exist here.*contrast_idx"):
        made("momentum").memory.contrast.multinomial = object()


def test_a_setting_of_the_other_memory_is_refused():
    with pytest.raises(AttributeError, match="FifoMemory has no nce_m"):
        made("fifo").nce_m = 0.9
    with pytest.raises(AttributeError, match="MomentumMemory has no slot_momentum"):
        made("momentum").slot_momentum = 0.9


def test_what_a_user_keeps_on_the_criterion_stays():
    criterion = made("fifo")
    criterion.name, criterion.head = "rrd", nn.Linear(2, 2)
    assert criterion.name == "rrd"
    assert "head.weight" in criterion.state_dict()
    assert (criterion.nce_k, criterion.memory_type, criterion.protocol) == (32, "fifo", "2025")


@pytest.mark.parametrize(
    ("kind", "backend"), [("fifo", "auto"), ("momentum", "auto"), ("cosine", "reference")]
)
def test_a_schedule_compiles_two_graphs(kind, backend, device):
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)  # which would fill Inductor's buffers
    counters.clear()
    criterion = made(kind, device, backend=backend)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for step in range(12):
        for module in (criterion, eager):
            module.tau_s, module.nce_t_t = 0.1 + 0.03 * step, 0.02 + 0.01 * step
            if kind == "fifo":
                module.slot_momentum = 0.05 * step
            else:
                module.nce_t, module.nce_m = 0.07 + 0.02 * step, 0.05 * step
        batch = inputs(kind, device)
        f_s = batch[0].requires_grad_()
        twin = f_s.detach().clone().requires_grad_()
        loss, wanted = compiled(*batch), eager(twin, *batch[1:])
        loss.backward()
        wanted.backward()
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(f_s.grad, twin.grad)
        torch.testing.assert_close(criterion.state_dict(), eager.state_dict())
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize(
    ("backend", "training", "place"),
    [
        ("aot_eager", True, 1),
        ("aot_eager", False, 4),
        pytest.param("inductor", True, 4, marks=pytest.mark.long),
    ],
)
def test_params_written_behind_a_compiled_graph(place, training, backend, device):
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    criterion = made("momentum", device).train(training)
    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    batch = inputs("momentum", device)
    assert compiled(*batch).isfinite()
    criterion.memory.contrast.params[place] = 0.9
    state = copy.deepcopy(criterion.state_dict())
    if device.type == "cpu":
        with pytest.raises(RuntimeError, match="params holds other numbers than this graph"):
            compiled(*batch)
        torch.testing.assert_close(dict(criterion.state_dict()), dict(state), rtol=0, atol=0)
    else:
        assert compiled(*batch).isnan()
    criterion.memory.contrast.refresh()  # as any eager step does
    assert compiled(*batch).isfinite()


@pytest.mark.parametrize("roundtrip", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_see_what_was_written_before(roundtrip, device):
    criterion = made("momentum", device)
    criterion(*inputs("momentum", device))
    criterion.memory.contrast.params[1] = 0.9
    criterion.tau_s = 0.3
    other = roundtrip(criterion)
    f_s, f_t, idx, columns = inputs("momentum", device)
    wanted = expected(criterion, 0.3, 0.02, f_s, f_t, idx, columns, nce_t=0.9)
    torch.testing.assert_close(other(f_s, f_t, idx, columns), wanted)
    assert other.nce_t == pytest.approx(0.9)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_float_argument_is_no_constant_of_the_graph(backend, device):
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    counters.clear()
    compiled = torch.compile(relational_step_, fullgraph=True, backend=backend)
    memory, ptr = torch.randn(32, 16, device=device), torch.tensor([0], device=device)
    twin, twin_ptr = memory.clone(), ptr.clone()
    for step in range(12):
        z_s, z_t = torch.randn(2, 6, 16, device=device)
        options = {"tau_s": 0.1 + 0.03 * step, "momentum": 0.05 * step}
        found = compiled(z_s, z_t, memory, ptr, **options)
        torch.testing.assert_close(found, relational_step_(z_s, z_t, twin, twin_ptr, **options))
    torch.testing.assert_close(memory, twin)
    assert counters["stats"]["unique_graphs"] <= 2


def test_a_tensor_of_a_function_is_no_constant_of_the_graph(device):
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    counters.clear()
    compiled = torch.compile(relational_step_, fullgraph=True, backend="aot_eager")
    memory, ptr = torch.randn(32, 16, device=device), torch.tensor([0], device=device)
    twin, twin_ptr = memory.clone(), ptr.clone()
    for step in range(12):
        z_s, z_t = torch.randn(2, 6, 16, device=device)
        tau = torch.tensor(0.1 + 0.03 * step)
        found = compiled(z_s, z_t, memory, ptr, tau_s=tau)
        wanted = relational_step_(z_s, z_t, twin, twin_ptr, tau_s=float(tau))
        torch.testing.assert_close(found, wanted)
        eager = [
            relational_step_(z_s, z_t, memory.clone(), ptr.clone(), tau_s=value)
            for value in (tau, float(tau))
        ]
        assert torch.equal(*eager)
    torch.testing.assert_close(memory, twin)
    assert counters["stats"]["unique_graphs"] == 1
    with pytest.raises(ValueError, match="must not be negative; got -1"):
        compiled(z_s, z_t, memory, ptr, tau_s=torch.tensor(-1.0))
    torch.testing.assert_close(memory, twin)


@pytest.mark.parametrize(
    "tau",
    [torch.ones(2), torch.ones((), dtype=torch.int64), torch.ones((), device="meta")],
    ids=str,
)
def test_a_tensor_that_is_no_number(tau):
    z_s, z_t = torch.randn(2, 6, 16)
    with pytest.raises(TypeError, match="tau_s must be a real number"):
        refused_step(z_s, z_t, tau)


def refused_step(z_s, z_t, tau):
    memory, ptr = torch.zeros(32, 16), torch.tensor([0])
    try:
        return relational_step_(z_s, z_t, memory, ptr, tau_s=tau)
    finally:
        assert not memory.any()
        assert ptr.item() == 0


@pytest.mark.parametrize(
    "name", ["enqueue_", "momentum_update_", "relational_step_forward_", "estimate_normalizers_"]
)
def test_opcheck_of_the_twins(name, device):
    tau, momentum = torch.tensor([0.1, 0.5], dtype=torch.float64)
    z_s, z_t = torch.randn(2, 4, 8, device=device)
    memory, index = torch.randn(16, 8, device=device), torch.arange(4, device=device)
    ptr = torch.tensor([14], device=device)
    columns = torch.randint(16, (4, 5), device=device)
    arguments = {
        "enqueue_": (memory, ptr, z_t, False, momentum),
        "momentum_update_": (memory, index, z_t, momentum),
        "relational_step_forward_": (
            *(memory, ptr, z_s, z_t, tau, tau, False, True, False, None, 1),
            *("before", False, momentum, True),
        ),
        "estimate_normalizers_": (
            *(torch.full((2,), -1.0, device=device), z_s, z_t, memory, memory.clone()),
            *(columns, tau),
        ),
    }
    operator = getattr(torch.ops.rrd_kernels, f"scheduled_{name}").default
    torch.library.opcheck(operator, arguments[name])
