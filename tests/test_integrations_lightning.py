"""What docs/packages/lightning.md says, in two processes."""

import contextlib
import os
import warnings
from pathlib import Path

import pytest
import torch
from launched import free_ports, leave_the_group
from ranks import message_of, on_ranks
from test_docs import run_script
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from rrd_kernels import RRDLoss
from rrd_kernels.distributed import ignore_in_ddp

L = pytest.importorskip("lightning")

PAGE = "docs/packages/lightning.md"
SIZES = {"s_dim": 64, "t_dim": 256, "nce_k": 64}


def resumed(rank, folder, ports):
    """States of runs of two epochs, and of their second epochs resumed from checkpoints."""
    os.chdir(folder)
    page, states = {}, {}
    for name in ("Distiller", "ShardedDistiller"):
        for path in (None, "checkpoints/epoch=0.ckpt"):
            leave_the_group(rank, ports.pop())
            page = page or run_script(PAGE)
            torch.manual_seed(len(states))  # another start, which the checkpoint replaces
            distiller = page[name]()
            images = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
            loader = DataLoader(images, batch_size=8, shuffle=True)
            os.makedirs(name, exist_ok=True)
            with contextlib.chdir(name):
                page["fit"](distiller, loader, path, devices=2)
            states[name, path is not None] = {
                key: value.to_local() if isinstance(value, DTensor) else value
                for key, value in distiller.state_dict().items()
            }
    return states


def test_a_resumed_run_has_the_same_bits(tmp_path):
    first, second = on_ranks(2, resumed, tmp_path, free_ports(4))
    for name in ("Distiller", "ShardedDistiller"):
        for rank in (first, second):
            assert rank[name, False]["criterion.memory.queue_ptr"].item() == (2 * 48) % 64
            assert same([rank[name, False], rank[name, True]])
    assert same([first["Distiller", False], second["Distiller", False]])


def with_lightning(rank, folder, ports):
    """Each case: what is raised, the advice that was given, and the criterion's state."""
    os.chdir(folder)
    warnings.filterwarnings("ignore", module="lightning")
    found, page = {}, {}

    def fit(case, make, path=None):
        leave_the_group(rank, ports.pop())
        if not page:
            page.update(run_script(PAGE))
        distiller = make()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=1 if path is None else 2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=Path(folder, case),
        )
        images = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            message = message_of(
                trainer.fit, distiller, DataLoader(images, 8), DataLoader(images, 8), ckpt_path=path
            )
        advice = [str(w.message) for w in caught if "DistributedDataParallel" in str(w.message)]
        criterion = distiller.criterion
        state = {name: t.detach().clone() for name, t in criterion.named_parameters()}
        state |= {name: t.clone() for name, t in criterion.named_buffers()}
        found[case] = message, advice, state
        return trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else None

    def make(ignores=True, **settings):
        torch.manual_seed(3)
        module = page["Distiller"]()
        module.criterion = RRDLoss(**SIZES, **settings)
        del module._ddp_params_and_buffers_to_ignore
        return ignore_in_ddp(module) if ignores else module

    fit("keys", make)
    fit("keys, copied", lambda: make(ignores=False))
    fit("none", lambda: make(gather="none"))
    fit("none, copied", lambda: make(ignores=False, gather="none"))
    fit("shard, made before", lambda: make(gather="shard"))
    path = fit("shard", lambda: page["ShardedDistiller"]())
    fit("shard, resumed", lambda: page["ShardedDistiller"](), path)
    found["saved"] = torch.load(path, weights_only=True)["state_dict"]
    return found


def same(states):
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.long
def test_lightning(tmp_path):
    ranks = on_ranks(2, with_lightning, tmp_path, free_ports(7))

    def of(case):
        return zip(*(found[case] for found in ranks), strict=True)

    fine, cannot_follow = "nothing was raised", "where a framework such as Lightning wraps"
    # One memory.
    messages, advice, one = of("keys")
    assert set(messages) == {fine}
    assert advice == ([], [])
    assert same(one)
    assert one[0]["memory.queue_ptr"].item() == 32
    # Without the call DDP copies it.
    messages, advice, states = of("keys, copied")
    assert set(messages) == {fine}
    for (text,) in (found[:1] for found in advice):
        assert "changes nothing and takes time" in text
        assert cannot_follow in text
        assert "call ignore_in_ddp(self) in the module" in text
    assert same([states[0], one[0]])
    assert same([states[1], one[1]])
    # A memory each.
    messages, advice, states = of("none")
    assert set(messages) == {fine}
    assert advice == ([], [])
    assert [state["memory.queue_ptr"].item() for state in states] == [16, 16]
    assert not torch.equal(states[0]["memory.queue"][:16], states[1]["memory.queue"][:16])
    # Without the call it is refused.
    messages, *_ = of("none, copied")
    for message in messages:
        assert message.startswith("RuntimeError: DistributedDataParallel copies rank 0's")
        assert "call ignore_in_ddp(self) in the module" in message
    # Parts of a memory need configure_model.
    messages, *_ = of("shard, made before")
    assert all("(in Lightning: in configure_model)" in message for message in messages)
    messages, _, states = of("shard")
    assert set(messages) == {fine}
    rows = torch.cat([state["memory.queue"] for state in states])
    assert rows.shape == (64, 128)
    saved = ranks[0]["saved"]  # a plain tensor, which one process loads too
    torch.testing.assert_close(saved["criterion.memory.queue"], rows, rtol=0, atol=0)
    messages, _, resumed = of("shard, resumed")
    assert set(messages) == {fine}
    assert [state["memory.queue_ptr"].item() for state in resumed] == [0, 0]  # 64 of 64 rows
    # The first epoch's 32 rows are those of rank 0, which the second leaves alone.
    assert torch.equal(resumed[0]["memory.queue"], states[0]["memory.queue"])
