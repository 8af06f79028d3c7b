"""What a step sends, counted; and that one process sends nothing."""

import itertools

import pytest
import torch
import torch.distributed as dist
from distillers import MEMORIES, N_DATA, SIZES, Distiller, batches
from ranks import on_ranks
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from rrd_kernels import RRDLoss
from rrd_kernels.distributed import ignore_in_ddp
from rrd_kernels.distributed.collectives import RING, Gathering, gather_numbers
from rrd_kernels.distributed.ranks import GATHERS, Ranks

#: What ranks tell each other before a step: six integers of eight bytes.
HEADER = 48
#: At a first step: two integers of each of two ranks.
PROJECTIONS = ("allgather_base", 2 * 16)


class Traffic(TorchDispatchMode):
    """The collectives that run inside, with the bytes of the larger of their buffers."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace == "c10d":
            tensors = [
                tensor
                for argument in arguments
                for tensor in (argument if isinstance(argument, list) else [argument])
                if isinstance(tensor, torch.Tensor)
            ]
            name = function._schema.name.removeprefix("c10d::").strip("_")
            self.seen.append((name, max(t.numel() * t.element_size() for t in tensors)))
        return function(*arguments, **(keywords or {}))


def send_nothing(rank):
    for gather, (name, settings) in itertools.product(GATHERS, MEMORIES.items()):
        if gather != "shard" or name.startswith("fifo"):
            module = Distiller(**settings, gather=gather)
            with Traffic() as traffic:
                for batch in batches()[:2]:
                    module(*batch).backward()
                module(*batch, update=False)
                module.eval()(*batch)
            assert traffic.seen == []


def test_one_process_sends_nothing():
    on_ranks(1, send_nothing)
    assert not dist.is_initialized()
    send_nothing(0)


def steps(rank, settings, sizes):
    """What the first and the second training step send: the first also compares the memories."""
    module = Distiller(**settings)
    seen = []
    for batch in batches()[:2]:
        with Traffic() as traffic:
            loss = module(*(part[: sizes[rank]] for part in batch))
        with Traffic() as back:
            loss.backward()
        # The gradients of embed_s, which no DDP averages here.
        width, dim = SIZES["s_dim"], SIZES["feat_dim"]
        assert sorted(back.seen) == [("allreduce", 8 * dim), ("allreduce", 8 * dim * width)]
        seen.append(traffic.seen)
    with Traffic() as traffic:
        module.eval()(*batch)
    assert traffic.seen == []
    return seen


def backward_of_each_mode(rank):
    found = []
    for gather, wraps in (("keys", False), ("shard", False), ("none", False), ("keys", True)):
        module = Distiller(**MEMORIES["fifo 2025"], gather=gather)
        wrapped = DDP(ignore_in_ddp(module)) if wraps else module
        loss = wrapped(*batches()[0])
        hooks = module.criterion.memory.averaging
        with pytest.MonkeyPatch.context() as patch:
            sent = []
            patch.setattr(dist, "all_reduce", lambda tensor, group, s=sent: s.append(tensor.shape))
            loss.backward()
        found.append(len(sent))
        assert wraps or gather == "none" or len(hooks._hooked) == 2
    return found


def test_gradients_are_averaged_where_no_ddp_does():
    assert on_ranks(2, backward_of_each_mode) == [[2, 2, 0, 0]] * 2


@pytest.mark.parametrize("sizes", [(6, 6), (5, 2), (0, 3), (0, 0)], ids=str)
def test_bytes_of_keys(sizes):
    """W·B·D keys, B being the largest batch, and the header."""
    for first, seen in on_ranks(2, steps, MEMORIES["fifo 2025"], sizes):
        keys = [("allgather_base", 2 * max(sizes) * SIZES["feat_dim"] * 8)] if any(sizes) else []
        assert seen == [("allgather_base", 2 * HEADER), *keys]
        memory = [("broadcast", 30 * SIZES["feat_dim"] * 8), ("broadcast", 8)]
        assert first == [seen[0], PROJECTIONS, *memory, *keys]


def test_the_header_of_more_ranks_has_fewer_rounds():
    """From four on one rank gathers it and tells the others."""
    for _, seen in on_ranks(4, steps, MEMORIES["fifo 2025"], (3, 3, 2, 3)):
        keys = ("allgather_base", 4 * 3 * SIZES["feat_dim"] * 8)
        assert seen == [("gather", HEADER), ("broadcast", 4 * HEADER), keys]


def numbers_of_all(rank):
    return gather_numbers(Ranks("keys"), torch.device("cpu"), [rank, -(2**62) + rank])


@pytest.mark.parametrize("ranks", [2, RING, RING + 1, 5])
def test_numbers_come_in_rank_order(ranks):
    wanted = [[rank, -(2**62) + rank] for rank in range(ranks)]
    assert on_ranks(ranks, numbers_of_all) == [wanted] * ranks


def test_bytes_of_the_momentum_memory():
    """W·B numbers of samples and 2·W·B·D embeddings; 24 bytes of each rank until Z is set."""
    rows = ("broadcast", N_DATA * SIZES["feat_dim"] * 8)
    for first, second in on_ranks(2, steps, MEMORIES["momentum"], (6, 6)):
        header = ("allgather_base", 2 * HEADER)
        samples = ("allgather_base", 2 * 6 * 8)
        moved = ("allgather_base", 2 * 2 * 6 * SIZES["feat_dim"] * 8)
        assert second == [header, samples, moved]
        params = ("broadcast", 5 * 8)
        z = ("allgather_base", 2 * 24)
        assert first == [header, PROJECTIONS, params, rows, rows, samples, moved, z]


class Order(TorchDispatchMode):
    """What is sent and computed inside, in its order."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace in ("c10d", "rrd_kernels"):
            self.seen.append(function._schema.name.split("::")[1].strip("_"))
        return function(*arguments, **(keywords or {}))


def order_of_the_second_step(rank, names):
    found, wait = {}, Gathering.wait
    for name in names:
        module = Distiller(**MEMORIES[name])
        module(*batches()[0])
        with Order() as order, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Gathering, "wait", lambda self: order.seen.append("wait") or wait(self))
            module(*batches()[1])
        found[name] = order.seen
    return found


def test_rows_travel_beside_the_loss():
    """They are waited for where they are needed: first, or after the loss."""
    wanted = {
        "fifo 2025": ["wait", "enqueue", "relational_loss_forward"],
        "fifo 2024": ["relational_loss_forward", "wait", "enqueue"],
        "momentum": [
            *("allgather_base", "sampled_relational_loss_forward", "wait", "wait"),
            *("momentum_update", "momentum_update"),
        ],
    }
    for found in on_ranks(2, order_of_the_second_step, list(wanted)):
        for name, order in wanted.items():
            assert found[name] == ["allgather_base", "allgather_base", *order]


def shard_steps(rank, sizes, settings):
    """What a training step sends, and what an evaluation without gradients does."""
    module = Distiller(nce_k=30, gather="shard", start="unit", **settings)
    batch = [part[: sizes[rank]] for part in batches()[0]]
    module(*batch)
    with Traffic() as training:
        module(*batch)
    with Traffic() as evaluation, torch.no_grad():
        module.eval()(*batch)
    return training.seen, evaluation.seen


@pytest.mark.parametrize("sizes", [(6, 6), (5, 2)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"nce_t_t": 0.01}], ids=["bounded", "online"])
def test_bytes_of_a_shard(settings, sizes):
    """2·W·B·D embeddings there, 2·W·B·(D + 1) sums back and W·B more for the loss; without bounded
    logits also 2·W·B shifts, which only these samples have, whatever the largest batch is."""
    largest, dim = max(sizes), SIZES["feat_dim"]
    header, queries = ("allgather_base", 2 * HEADER), ("allgather_base", 2 * largest * 2 * dim * 8)
    shifts = [("allreduce", 2 * sum(sizes) * 8)] if settings else []
    sums = ("reduce_scatter_base", 2 * largest * (2 * (dim + 1) + 1) * 8)
    without = ("reduce_scatter_base", 2 * largest * 3 * 8)
    for training, evaluation in on_ranks(2, shard_steps, sizes, settings):
        assert training == [header, queries, *shifts, sums]
        assert evaluation == [header, queries, *shifts, without]


def checkpointed_step(rank, gather, use_reentrant):
    """What the second step sends, forward and backward, which computes forward again."""
    module = Distiller(nce_k=30, gather=gather)
    for batch in batches()[:2]:
        with Traffic() as traffic:
            x, *others = batch
            loss = checkpoint(module, x.requires_grad_(), *others, use_reentrant=use_reentrant)
            loss.backward()
    return traffic.seen


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("gather", ["keys", "shard"])
def test_a_recomputation_copies_no_memory(gather, use_reentrant):
    """It ends in the middle of a step, as one that has failed does."""
    for seen in on_ranks(2, checkpointed_step, gather, use_reentrant):
        assert seen.count(("allgather_base", 2 * HEADER)) == 2
        queries = ("allgather_base", 2 * 12 * 2 * SIZES["feat_dim"] * 8)
        assert seen.count(queries) == (2 if gather == "shard" else 0)
        assert not [name for name, _ in seen if name == "broadcast"]


def half_precision(rank):
    criterion = RRDLoss(**SIZES, nce_k=30, dtype=torch.bfloat16)
    criterion(torch.randn(3, 10), torch.randn(3, 9))
    with Traffic() as traffic:
        criterion(torch.randn(3, 10), torch.randn(3, 9))
    return traffic.seen, criterion.memory.queue


def test_rows_travel_in_their_own_dtype():
    (seen, queue), (_, other) = on_ranks(2, half_precision)
    assert seen[1] == ("allgather_base", 2 * 3 * SIZES["feat_dim"] * 2)
    assert torch.equal(queue, other)
