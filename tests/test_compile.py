"""torch.compile without graph breaks, the enqueue included, and torch.export."""

import copy
import functools
import io

import pytest
import torch
from distillers import MEMORIES, Distiller, batches, share_of
from problems import draw
from ranks import on_ranks
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from rrd_kernels import RRDLoss
from rrd_kernels.distributed import ignore_in_ddp
from rrd_kernels.functional import enqueue_, relational_loss, relational_step_


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch.compiler.reset()
    # The deterministic mode of the other tests would fill Inductor's buffers at every step.
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("protocol", ["2024", "2025"])
def test_training_steps(backend, protocol, device):
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=16, nce_k=48, protocol=protocol).to(device)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    for _ in range(6):  # 6 x 10 rows pass the end of the memory
        f_s = torch.randn(10, 12, device=device, requires_grad=True)
        f_t = torch.randn(10, 20, device=device)
        twin = f_s.detach().clone().requires_grad_()
        loss, wanted = compiled(f_s, f_t), eager(twin, f_t)
        loss.backward()
        wanted.backward()
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(f_s.grad, twin.grad)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(criterion.state_dict()[key], value)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("enqueue", ["before", "after"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_functional_step(reduction, enqueue, dtype, backend, device):
    """Twice through a retained graph, with a grad_output that is expanded."""
    step = functools.partial(relational_step_, reduction=reduction, enqueue=enqueue)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    problem = draw(6, 8, 16, dtype, device)
    results = []
    for function in (step, compiled):
        memory, ptr = problem.memory.clone(), torch.tensor([13], device=device)
        z_s = problem.z_s.detach().requires_grad_()
        # Buffers that backward may reuse for its results are not there a second time.
        with torch._functorch.config.patch(donated_buffer=False):
            losses = function(z_s, problem.z_t, memory, ptr)
            weight = torch.tensor(3.0, device=device).expand_as(losses)
            first, second = (
                torch.autograd.grad(losses, z_s, weight, retain_graph=True)[0] for _ in range(2)
            )
        assert torch.equal(first, second)
        assert first.dtype == dtype
        results.append((losses, first, memory, ptr))
    for value, wanted in zip(*results, strict=True):
        torch.testing.assert_close(value, wanted)


def test_a_second_batch_size_and_eval(device):
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=16, nce_k=48).to(device)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for batch in (10, 7, 9, 10):
        f_s, f_t = torch.randn(batch, 12, device=device), torch.randn(batch, 20, device=device)
        torch.testing.assert_close(compiled(f_s, f_t), eager(f_s, f_t))
    criterion.eval()
    eager.eval()
    torch.testing.assert_close(compiled(f_s, f_t), eager(f_s, f_t))
    assert torch.equal(criterion.memory.queue_ptr, eager.memory.queue_ptr)


def test_autocast_inside(device):
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=16, nce_k=48).to(device)
    eager = copy.deepcopy(criterion)

    def step(module, f_s, f_t):
        with torch.autocast(device.type, torch.bfloat16):
            return module(f_s, f_t)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    f_s, f_t = torch.randn(10, 12, device=device), torch.randn(10, 20, device=device)
    torch.testing.assert_close(compiled(criterion, f_s, f_t), step(eager, f_s, f_t))


class Loss(torch.nn.Module):
    def __init__(self, reduction):
        super().__init__()
        self.reduction = reduction

    def forward(self, z_s, z_t, memory):
        return relational_loss(z_s, z_t, memory, tau_s=0.2, reduction=self.reduction)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_the_functional_loss(strict, reduction, device):
    problem = draw(6, 8, 32, device=device)
    batch, rows = torch.export.Dim("batch", min=2), torch.export.Dim("rows", min=2)
    program = torch.export.export(
        Loss(reduction),
        (problem.z_s, problem.z_t, problem.memory),
        dynamic_shapes=({0: batch}, {0: batch}, {0: rows}),
        strict=strict,
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for size in ((6, 32), (3, 50)):
        problem = draw(size[0], 8, size[1], device=device)
        wanted = Loss(reduction)(problem.z_s, problem.z_t, problem.memory)
        assert torch.equal(loaded(problem.z_s, problem.z_t, problem.memory), wanted)


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("need_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck_of_the_loss(dtype, need_grad, reduction, device):
    problem = draw(4, 8, 16, dtype, device)
    precision = None if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    arguments = (problem.z_t, problem.memory, 0.1, 0.02, False, False, False, precision)
    torch.library.opcheck(
        torch.ops.rrd_kernels.relational_loss_forward.default,
        (problem.z_s, *arguments, reduction, need_grad),
    )
    torch.library.opcheck(
        torch.ops.rrd_kernels.relational_loss.default,
        (problem.z_s.requires_grad_(need_grad), *arguments, reduction),
    )


@pytest.mark.parametrize("enqueue", ["after", "before"])
@pytest.mark.parametrize("reduction", [0, 1])
@pytest.mark.parametrize("need_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_of_the_step(dtype, need_grad, reduction, enqueue, device):
    problem = draw(4, 8, 16, dtype, device)
    ptr = torch.tensor([14], device=device)
    settings = (0.1, 0.02, False, True, True, None, reduction, enqueue, enqueue == "before", 0.5)
    torch.library.opcheck(
        torch.ops.rrd_kernels.relational_step_forward_.default,
        (problem.memory, ptr, problem.z_s, problem.z_t, *settings, need_grad),
    )
    z_s = problem.z_s.requires_grad_(need_grad)
    torch.library.opcheck(
        torch.ops.rrd_kernels.relational_step_.default,
        (problem.memory, ptr, z_s, problem.z_t, *settings),
    )


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_opcheck_of_the_enqueue(momentum, newest_first, device):
    memory = torch.randn(8, 4, device=device)
    ptr = torch.tensor([6], device=device)
    keys = torch.randn(4, 4, device=device)
    arguments = (memory, ptr, keys, newest_first, momentum)
    torch.library.opcheck(torch.ops.rrd_kernels.enqueue_.default, arguments)


def test_inference_mode_and_no_grad(device):
    problem = draw(4, 8, 16, device=device)
    arguments = (problem.z_s.requires_grad_(), problem.z_t, problem.memory)
    wanted = relational_loss(*arguments).detach()
    with torch.no_grad():
        assert not relational_loss(*arguments).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(relational_loss(*arguments).clone(), wanted)
        memory, ptr = torch.zeros(4, 8), torch.zeros(1, dtype=torch.int64)
        enqueue_(memory, ptr, torch.randn(2, 8))
        assert ptr.item() == 2


def compiled_on_ranks(rank, gather, fullgraph):
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=16, nce_k=48, gather=gather)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=fullgraph, backend="aot_eager")
    for _ in range(3):
        f_s, f_t = torch.randn(5, 12), torch.randn(5, 20)
        results = []
        for module in (compiled, eager):
            leaf = f_s.clone().requires_grad_()
            loss = module(leaf, f_t)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        torch.testing.assert_close(*results)
    assert torch.equal(criterion.memory.queue_ptr, eager.memory.queue_ptr)
    torch.testing.assert_close(criterion.memory.queue, eager.memory.queue)


def compiled_under_ddp(rank, name, gather):
    """Batches that differ between ranks and steps."""
    torch.use_deterministic_algorithms(False)
    plain, twin = (Distiller(**MEMORIES[name], gather=gather) for _ in range(2))
    compiled = torch.compile(DDP(ignore_in_ddp(plain)), backend="aot_eager")
    eager = DDP(ignore_in_ddp(twin))
    sizes = [[6, 6], [8, 4], [0, 12], [5, 7]]
    for batch, each in zip(batches(), sizes, strict=False):
        for module in (compiled, eager):
            module.zero_grad()
            module(*share_of(batch, rank, each)).backward()
        grads = [[p.grad for p in m.parameters() if p.requires_grad] for m in (plain, twin)]
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(dict(plain.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize(
    ("name", "gather"), [("fifo 2025", "keys"), ("fifo 2025", "shard"), ("momentum", "keys")]
)
def test_under_ddp(name, gather):
    on_ranks(2, compiled_under_ddp, name, gather)


@pytest.mark.parametrize("gather", ["keys", "shard"])
@pytest.mark.parametrize("world", [1, 2])
def test_in_a_process_group(world, gather):
    """One rank of one still compiles whole."""
    on_ranks(world, compiled_on_ranks, gather, world == 1)
