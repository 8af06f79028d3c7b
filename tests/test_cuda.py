"""What only a GPU has: streams, graphs, a second device, loss scaling, cudagraphed compilation."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from problems import Problem, draw, tolerance
from torch._dynamo.utils import counters

from rrd_kernels import RRDLoss
from rrd_kernels.functional import enqueue_, relational_loss, relational_step_

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

BATCH, DIM, ROWS = 24, 64, 1000  # the batch does not divide the rows: it wraps inside a batch


def batches(count, device="cuda"):
    return [tuple(torch.randn(2, BATCH, DIM, device=device)) for _ in range(count)]


def start(device="cuda", at=950):
    memory = F.normalize(torch.randn(ROWS, DIM, device=device), dim=1)
    return memory, torch.tensor([at], device=device)


def step(z_s, z_t, state, **options):
    z_s = z_s.detach().requires_grad_()
    loss = relational_step_(z_s, z_t, *state, backend="fused", **options)
    loss.backward()
    return loss.detach(), z_s.grad


@pytest.mark.parametrize("unit_memory", [False, True])
@pytest.mark.parametrize("enqueue", ["before", "after"])
def test_graph_replays_over_the_wrap(enqueue, unit_memory):
    options = {"enqueue": enqueue, "unit_memory": unit_memory}
    state = start()
    eager = [tensor.clone() for tensor in state]
    z_s, z_t = (tensor.clone() for tensor in batches(1)[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(z_s, z_t, [tensor.clone() for tensor in state], **options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    leaf = z_s.detach().requires_grad_()
    with torch.cuda.graph(graph):
        loss = relational_step_(leaf, z_t, *state, backend="fused", **options)
        (grad,) = torch.autograd.grad(loss, leaf)
    for captured, kept in zip(state, eager, strict=True):
        assert torch.equal(captured, kept)  # a capture runs nothing
    for student, teacher in batches(6):
        z_s.copy_(student)
        z_t.copy_(teacher)
        loss.fill_(torch.nan)
        grad.fill_(torch.nan)
        graph.replay()
        wanted, wanted_grad = step(student, teacher, eager, **options)
        assert torch.equal(loss, wanted)
        assert torch.equal(grad, wanted_grad)
        for captured, kept in zip(state, eager, strict=True):
            assert torch.equal(captured, kept)


def test_no_host_sync():
    state = start()
    z_s, z_t = batches(1)[0]
    step(z_s, z_t, state)  # compiles
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=DIM, nce_k=ROWS).cuda()
    f_s, f_t = torch.randn(BATCH, 12, device="cuda"), torch.randn(BATCH, 20, device="cuda")
    criterion(f_s, f_t).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(z_s, z_t, state)
        enqueue_(*state, z_t)
        criterion(f_s, f_t).backward()
        criterion.eval()(f_s, f_t)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_launches():
    """Three kernels forward, and one backward beside autograd's own filling of the gradient."""
    state = start()
    z_s, z_t = batches(1)[0]
    step(z_s, z_t, state)
    leaf = z_s.detach().requires_grad_()
    seed = torch.ones((), device="cuda")
    torch.cuda.synchronize()
    torch.use_deterministic_algorithms(False)  # it fills what torch.empty returns: more launches
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        loss = relational_step_(leaf, z_t, *state, backend="fused")
        torch.autograd.grad(loss, leaf, grad_outputs=seed)
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    kernels = [event.name for event in profile.events() if event.device_type == on_device]
    kernels = [name for name in kernels if not name.startswith("Mem")]  # copies and sets
    assert kernels[:3] == ["prepare", "attend", "combine"]
    assert len(kernels) == 4, kernels


def test_side_stream():
    state = start()
    other = [tensor.clone() for tensor in state]
    work = batches(8)
    wanted = [step(*batch, state) for batch in work]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)  # what does not wait for it would be on another stream
        found = [step(*batch, other) for batch in work]
    torch.cuda.current_stream().wait_stream(side)
    for ours, theirs in zip(found, wanted, strict=True):
        for value, expected in zip(ours, theirs, strict=True):
            assert torch.equal(value, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_device_that_is_not_current():
    state = start()
    other = [tensor.to("cuda:1") for tensor in state]
    work = batches(2)
    wanted = [step(*batch, state) for batch in work]
    assert torch.cuda.current_device() == 0
    for batch, expected in zip(work, wanted, strict=True):
        found = step(*(tensor.to("cuda:1") for tensor in batch), other)
        for value, want in zip(found, expected, strict=True):
            assert value.device == torch.device("cuda:1")
            torch.testing.assert_close(value.cpu(), want.cpu())
    with pytest.raises(ValueError, match="on one device"):
        relational_loss(*work[0], other[0])


def test_grad_scaler_skips_a_step_that_overflows():
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=DIM, nce_k=ROWS).cuda()
    student = torch.nn.Linear(8, 12).cuda()
    parameters = [*student.parameters(), *criterion.embed_s.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    x, f_t = torch.randn(BATCH, 8, device="cuda"), torch.randn(BATCH, 20, device="cuda")
    for bad in (False, True, False):
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.autocast("cuda", torch.float16):
            f_s = student(x)
            assert f_s.dtype == torch.float16
            loss = criterion(f_s * torch.inf if bad else f_s, f_t)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = any(
            not torch.equal(parameter, old)
            for parameter, old in zip(parameters, before, strict=True)
        )
        assert moved != bad
    assert criterion.memory.queue.isfinite().all()


@pytest.mark.parametrize("protocol", ["2024", "2025"])
def test_compiled_with_reduced_overhead(protocol):
    """The buffers are changed in place in the graph: no copy of the memory is made."""
    size = 1 << 18
    counters.clear()
    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=DIM, nce_k=size, protocol=protocol).cuda()
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, mode="reduce-overhead")
    work = [
        (torch.randn(BATCH, 12, device="cuda"), torch.randn(BATCH, 20, device="cuda"))
        for _ in range(6)
    ]
    for i, (f_s, f_t) in enumerate(work):
        if i == 4:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        results = []
        for module in (compiled, eager):
            torch.compiler.cudagraph_mark_step_begin()
            module.zero_grad(set_to_none=True)  # the graph's own memory, which it writes again
            leaf = f_s.clone().requires_grad_()
            loss = module(leaf, f_t)
            loss.backward()
            results.append((loss.detach().clone(), leaf.grad.clone()))
        for value, wanted in zip(*results, strict=True):
            torch.testing.assert_close(value, wanted)
    assert counters["inductor"]["cudagraph_skips"] == 0
    memory_bytes = criterion.memory.queue.nbytes
    assert torch.cuda.max_memory_allocated() - before < memory_bytes / 2
    torch.testing.assert_close(criterion.memory.queue, eager.memory.queue)
    assert torch.equal(criterion.memory.queue_ptr, eager.memory.queue_ptr)


@pytest.mark.parametrize("rows", [1000, 100_000])
def test_extra_memory_does_not_grow_with_the_memory(rows):
    problem = draw(256, 128, rows, torch.float32, "cuda")
    ptr = torch.zeros(1, dtype=torch.int64, device="cuda")
    z_s = problem.z_s.requires_grad_()

    def run():
        z_s.grad = None
        relational_step_(z_s, problem.z_t, problem.memory, ptr, unit_memory=True).backward()

    run()
    z_s.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 16 * 256 * 128 + 32 * 2**20


def losses_and_gradients(problem, **options):
    z_s = problem.z_s.detach().requires_grad_()
    arguments = (z_s, problem.z_t, problem.memory)
    losses = relational_loss(*arguments, reduction="none", backend="fused", **options)
    return losses.detach(), torch.autograd.grad(losses.sum(), z_s)[0]


def off_by(problem: Problem, found, precision: str) -> float:
    """The largest error of a loss or a gradient's row, as a share of its bound."""
    exact, bounds = problem.float64(), tolerance(problem, precision)
    loss = (found[0].double() - exact[0]).abs() / bounds[0]
    grad = (found[1].double() - exact[1]).norm(dim=1) / bounds[1]
    return torch.cat([loss, grad]).max().item()


def test_the_global_setting_chooses_tf32():
    problem = draw(70, 128, 3000, device="cuda")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        finest = losses_and_gradients(problem)
        torch.set_float32_matmul_precision("high")
        coarser = losses_and_gradients(problem)
    finally:
        torch.set_float32_matmul_precision(before)
    # The bound is of the worst case: an error of ten bits may just keep within that of 21.
    near, far = (off_by(problem, found, "float32") for found in (finest, coarser))
    assert near <= 1
    assert far > 16 * near
    assert off_by(problem, coarser, "tf32") <= 1
    for value, wanted in zip(coarser, losses_and_gradients(problem, precision="tf32"), strict=True):
        assert torch.equal(value, wanted)


def test_warmup_leaves_nothing_to_compile():
    from rrd_kernels.triton.runtime import run

    criterion = RRDLoss(s_dim=12, t_dim=20, feat_dim=48, nce_k=777).cuda()
    state = copy.deepcopy(criterion.state_dict())
    criterion.warmup(BATCH)
    for key, value in criterion.state_dict().items():
        assert torch.equal(value, state[key])
    known = dict(run._loaded)
    f_s, f_t = torch.randn(BATCH, 12, device="cuda"), torch.randn(BATCH, 20, device="cuda")
    criterion(f_s, f_t).backward()
    criterion.eval()(f_s, f_t)
    assert run._loaded.keys() == known.keys()


def test_a_thread_that_has_used_no_gpu_yet():
    state = start()
    z_s, z_t = batches(1)[0]
    step(z_s, z_t, state)
    found = []
    thread = threading.Thread(target=lambda: found.append(step(z_s, z_t, state)))
    thread.start()
    thread.join()
    assert found[0][0].isfinite()
