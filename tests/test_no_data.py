"""Without data: on meta and under FakeTensorMode, and on devices that lack a dtype."""

import contextlib
import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rrd_kernels import ContrastSampler, FifoMemory, RRDLoss

KINDS = {
    "fifo": {"nce_k": 32},
    "2024": {"nce_k": 32, "protocol": "2024", "slot_momentum": 0.5},
    "momentum": {"memory_type": "momentum", "n_data": 40, "nce_k": 6},
    "cosine": {"memory_type": "momentum", "n_data": 40, "nce_k": 6, "similarity": "cosine"},
}


def made(kind, **options):
    return RRDLoss(s_dim=12, t_dim=20, feat_dim=16, **KINDS[kind], **options)


def samples_of(kind, device):
    if kind not in ("momentum", "cosine"):
        return ()
    return (torch.zeros(6, dtype=torch.int64, device=device),)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["auto", "fused", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["meta", "fake"])
def test_a_loss_without_data(where, kind, backend, dtype, autocast, training):
    mode = FakeTensorMode() if where == "fake" else contextlib.nullcontext()
    device = "meta" if where == "meta" else "cpu"
    with mode, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        criterion = made(kind, backend=backend, device=device, dtype=dtype).train(training)
        f_s = torch.randn(6, 12, device=device, dtype=dtype, requires_grad=True)
        f_t = torch.randn(6, 20, device=device, dtype=dtype)
        loss = criterion(f_s, f_t, *samples_of(kind, device))
        assert loss.shape == ()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        loss.backward()
        assert f_s.grad.shape == f_s.shape
        assert criterion.embed_s.weight.grad.dtype == dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["auto", "fused", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_on_a_gpu_that_is_not_there(kind, backend):
    with FakeTensorMode():
        criterion = made(kind, backend=backend, device="cuda")
        f_s, f_t = torch.randn(6, 12, device="cuda"), torch.randn(6, 20, device="cuda")
        loss = criterion(f_s, f_t, *samples_of(kind, "cuda"))
    assert (loss.device.type, loss.shape, loss.dtype) == ("cuda", (), torch.float32)


def test_a_criterion_of_meta_gets_its_state_later():
    torch.manual_seed(1)
    wanted = made("momentum")
    criterion = made("momentum", device="meta").to_empty(device="cpu")
    criterion.load_state_dict(wanted.state_dict())
    batch = torch.randn(6, 12), torch.randn(6, 20), torch.arange(6), torch.randint(40, (6, 7))
    assert torch.equal(criterion(*batch), wanted(*batch))


class NoFloat64(TorchDispatchMode):
    """A device without float64, as MPS is."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError(f"{function} made a float64 tensor")
        return result


def test_the_mode_could_fail():
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("kind", KINDS)
def test_training_without_float64(kind):
    """The reference from float32 inputs, and all that is around it."""
    with NoFloat64():
        criterion = made(kind, backend="reference")
        optimizer = torch.optim.SGD(criterion.parameters(), 0.1)
        for step in range(8):  # past the memory's end
            f_s, f_t = torch.randn(6, 12, requires_grad=True), torch.randn(6, 20)
            columns = torch.randint(40, (6, 7))
            samples = (columns[:, 0].contiguous(), columns) if len(samples_of(kind, "cpu")) else ()
            criterion.tau_s = 0.1 + 0.01 * step
            loss = criterion(f_s, f_t, *samples)
            loss.backward()
            optimizer.step()
            assert loss.dtype == torch.float32
        criterion.warmup(6)
        criterion.eval()(f_s, f_t, *samples)
        copied = copy.deepcopy(criterion)
        copied.load_state_dict(criterion.state_dict())


def test_sampler_without_float64():
    with NoFloat64():
        sampler = ContrastSampler([0, 0, 1, 1, 2, 2], size=8, mode="relax")
        assert sampler(torch.arange(6)).shape == (6, 9)


def test_rows_that_overflow_in_float32_have_norm_one():
    """Their squares do, their norms do not."""
    memory = FifoMemory(
        embed_s=torch.nn.Identity(),
        embed_t=torch.nn.Identity(),
        feat_dim=4,
        size=8,
        backend="reference",
    )
    sizes = torch.tensor([1e30, 1e-9, 1e-30, 0])
    rows = sizes[:, None] * torch.tensor([3.0, 4, 0, 0])
    memory(torch.randn(4, 4), rows)
    wanted = torch.tensor([[0.6, 0.8], [0.6, 0.8], [3e-18, 4e-18], [0, 0]])
    # Six roundings: two divisions, the squares, their sum, its root, the constant here.
    torch.testing.assert_close(memory.queue[:4, :2], wanted, rtol=6 * 2.0**-24, atol=0)
