"""What docs/packages/accelerate.md says, in two processes."""

import os
from pathlib import Path

import pytest
import torch
from launched import free_ports, leave_the_group
from ranks import message_of, on_ranks
from test_docs import run_script

from rrd_kernels import RelationalQueue, RRDLoss

accelerate = pytest.importorskip("accelerate")

PAGE = "docs/packages/accelerate.md"
SIZES = {"s_dim": 64, "t_dim": 256, "nce_k": 64}


def the_page(rank, folder, port):
    """Of its script, which resumes a run: the states at the end."""
    leave_the_group(rank, port)
    os.chdir(folder)
    page = run_script(PAGE)
    assert accelerate.PartialState().num_processes == 2
    accelerator, queue = accelerate.Accelerator(cpu=True), RelationalQueue(dim=4, size=16)
    accelerator.register_for_checkpointing(queue)
    queue(torch.randn(4, 4), torch.randn(4, 4))
    rows = queue.queue.clone()
    accelerator.save_state("queue")
    accelerator.wait_for_everyone()
    queue.queue.zero_(), queue.queue_ptr.zero_()
    accelerator.load_state("queue")
    assert torch.equal(queue.queue, rows)
    assert queue.queue_ptr.item() == 8
    return page["whole"], page["resumed"]


def test_a_resumed_run_has_the_same_bits(tmp_path, monkeypatch):
    ranks = on_ranks(2, the_page, tmp_path, *free_ports(1))
    first, *others = (state for states in ranks for state in states)
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())
    assert first["memory.queue_ptr"].item() == (2 * 48) % 64
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")  # one process loads what two have saved
    on_one = run_script(PAGE)["train"](str(tmp_path / "epoch-0"))
    assert on_one["memory.queue_ptr"] == first["memory.queue_ptr"]


def with_accelerate(rank, folder, port):
    leave_the_group(rank, port)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = {}
    for gather in ("keys", "none", "shard"):
        torch.manual_seed(3)
        student, criterion = torch.nn.Linear(32, 64), RRDLoss(**SIZES, gather=gather)
        optimizer = torch.optim.SGD([*student.parameters(), *criterion.parameters()], lr=0.05)
        student, criterion, optimizer = accelerator.prepare(student, criterion, optimizer)
        plain = accelerator.unwrap_model(criterion)
        before = plain.embed_s.weight.detach().clone()
        torch.manual_seed(rank)
        loss = criterion(student(torch.randn(8, 32)), torch.randn(8, 256))
        accelerator.backward(loss)
        optimizer.step()
        criterion.tau_s = 0.05
        rows = plain.queue.clone()
        path = Path(folder, gather)
        message = message_of(accelerator.save_state, path)
        if gather != "shard":
            accelerator.wait_for_everyone()
            plain.queue.zero_()
            accelerator.load_state(path)
        kept = torch.equal(plain.queue, rows)
        moved = not torch.equal(plain.embed_s.weight, before)
        found[gather] = message, kept, moved, plain.tau_s, plain.queue_ptr.item()
        accelerator.free_memory()
    return found


def test_accelerate(tmp_path):
    first, second = on_ranks(2, with_accelerate, tmp_path, *free_ports(1))
    fine = "nothing was raised"
    assert first["keys"] == second["keys"] == (fine, True, True, 0.1, 16)
    # Of memories that differ, the one of rank 0 is saved, and loaded by all.
    assert first["none"] == (fine, True, True, 0.1, 8)
    assert second["none"] == (fine, False, True, 0.1, 8)
    for found in (first, second):
        message, *_ = found["shard"]
        assert message.startswith("RuntimeError: ")
