"""NTXentLoss in the place of lightly's class of that name."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from ranks import message_of, on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rrd_kernels.distributed import ignore_in_ddp

lightly_loss = pytest.importorskip("lightly.loss")
from rrd_kernels.integrations.lightly import NTXentLoss  # noqa: E402

B, K, D = 6, 18, 10


def pair(size=(K, D), temperature=0.2, dtype=torch.float32, **settings):
    """lightly's criterion and ours, from one seed."""
    found = []
    for make in (lightly_loss.NTXentLoss, NTXentLoss):
        torch.manual_seed(5)
        found.append(make(temperature, size, **settings).to(dtype))
    return found


def batch(seed: int, rows: int = B, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Queries and keys of different norms."""
    generator = torch.Generator().manual_seed(seed)
    query, key = 3 * torch.randn(2, rows, D, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype)


def step(criterion: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the query."""
    query = query.clone().requires_grad_()
    loss = criterion(query, key)
    loss.backward()
    return loss.detach(), query.grad


def state(criterion: nn.Module) -> tuple[Tensor, Tensor]:
    """The rows and the pointer."""
    bank = criterion.memory_bank
    own = isinstance(criterion, NTXentLoss)
    rows, ptr = (bank.queue, bank.queue_ptr) if own else (bank.bank, bank.bank_ptr)
    return rows.clone(), ptr.clone()


def tolerance(dtype: torch.dtype, temperature: float = 0.2) -> float:
    """A logit is a sum of D products, each of two rounded numbers, over the temperature; a
    probability errs by twice that, here and in lightly. As in test_family.py."""
    return 4 * (D + 4) * torch.finfo(dtype).eps / 2 / temperature


def same_rows(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """A normalised row: the norm errs by the D + 1 roundings of its sum and root, half of them of
    a square, and the division by one more, here and in lightly."""
    eps = torch.finfo(found[0].dtype).eps
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=(D + 4) * eps)
    assert torch.equal(found[1], wanted[1])


def close(found: Tensor, wanted: Tensor, bound: float) -> None:
    """Relative to the largest number."""
    assert (found - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "float"])
@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_training_is_lightlys(dtype, temperature):
    """Over a bank of three batches: it wraps four times."""
    theirs, ours = pair(temperature=temperature, dtype=dtype)
    assert all(map(torch.equal, state(ours), state(theirs)))  # one seed, one start
    for at in range(13):
        query, key = batch(at, dtype=dtype)
        (loss, grad), (found, found_grad) = (step(each, query, key) for each in (theirs, ours))
        bound = tolerance(dtype, temperature)
        close(found, loss, bound)
        close(found_grad, grad, bound)
        same_rows(state(ours), state(theirs))
    assert state(ours)[1].item() == B


def test_a_schedule_of_the_temperature_reaches_the_loss():
    theirs, ours = pair()
    query, key = batch(0)
    assert ours.temperature == 0.2
    theirs.temperature = ours.temperature = 0.07
    close(step(ours, query, key)[0], step(theirs, query, key)[0], tolerance(torch.float32, 0.07))


def test_without_gradient_the_bank_stays():
    """As in lightly; eval() too, which lightly's class ignores."""
    theirs, ours = pair()
    query, key = batch(0)
    before = state(ours)
    losses = []
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            losses += [theirs(query, key), ours(query, key)]
    losses += [theirs(query, key), ours(query, key)]
    for wanted, found in zip(losses[::2], losses[1::2], strict=True):
        close(found, wanted, tolerance(torch.float32))
    assert all(map(torch.equal, state(ours), before))
    assert all(map(torch.equal, state(theirs), before))
    ours.eval(), theirs.eval()
    wanted, found = (step(each, query, key) for each in (theirs, ours))
    close(found[1], wanted[1], tolerance(torch.float32))
    assert all(map(torch.equal, state(ours), before))
    assert state(theirs)[1].item() == B


def test_a_batch_that_does_not_divide_the_bank():
    """lightly drops the rows past the end and starts again at row 0; here they wrap."""
    theirs, ours = pair(size=(16, D))
    for at in range(2):
        query, key = batch(at)
        step(theirs, query, key), step(ours, query, key)
    same_rows(state(ours), state(theirs))  # rows 0 to 11
    query, key = batch(2)
    step(theirs, query, key), step(ours, query, key)
    (rows, ptr), (their_rows, their_ptr) = state(ours), state(theirs)
    assert (ptr.item(), their_ptr.item()) == (2, 0)
    unit = F.normalize(key)
    same_rows((rows[12:], ptr), (unit[:4], ptr))
    same_rows((rows[:2], ptr), (unit[4:], ptr))
    same_rows((their_rows[12:], ptr), (unit[:4], ptr))
    assert not torch.isin(their_rows, unit[4:]).any()


def test_what_is_refused():
    query, key = batch(0)
    for size in (0, (0, D)):
        assert "use lightly.loss.NTXentLoss" in message_of(NTXentLoss, memory_bank_size=size)
        lightly_loss.NTXentLoss(memory_bank_size=size)(query, key)
    for size in (K, (K,), (K, D, 1), None):
        assert "must be (rows, width)" in message_of(NTXentLoss, memory_bank_size=size)
    assert "temperature must be positive" in message_of(NTXentLoss, 0, (K, D))
    # lightly gives the key a gradient.
    theirs, ours = pair()
    before = state(ours)
    key.requires_grad_()
    theirs(query, key).backward()
    assert key.grad.abs().max() > 0
    assert "criterion(out0, out1.detach())" in message_of(ours, query, key)
    assert "out0 must be [B, 10]" in message_of(ours, query[:, 1:], key.detach())
    many, keys = batch(0, K + 1)
    message = message_of(ours, many.requires_grad_(), keys)
    assert "make the memory (memory_bank_size) larger" in message
    assert all(map(torch.equal, state(ours), before))


class Model(nn.Module):
    """As in lightly's Lightning examples."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.encoder, self.criterion = nn.Linear(D, D), criterion

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.criterion(self.encoder(query), key)


def test_a_resumed_run_has_its_bank():
    theirs, ours = map(Model, pair())
    for model in (theirs, ours):
        step(model, *batch(0))
    again = Model(NTXentLoss(memory_bank_size=(K, D)))
    again.load_state_dict(ours.state_dict())
    assert all(map(torch.equal, state(again.criterion), state(ours.criterion)))
    # lightly's is a random one.
    lost = Model(lightly_loss.NTXentLoss(memory_bank_size=(K, D)))
    lost.load_state_dict(theirs.state_dict())
    assert not torch.isin(state(lost.criterion)[0], state(theirs.criterion)[0]).any()


def test_a_checkpoint_of_lightly_loads_with_a_warning():
    theirs, ours = map(Model, pair())
    before = state(ours.criterion)
    with pytest.warns(UserWarning, match="no 'criterion.memory_bank.queue', as lightly's") as found:
        ours.load_state_dict(theirs.state_dict())
    assert len(found) == 1
    assert torch.equal(ours.encoder.weight, theirs.encoder.weight)
    assert all(map(torch.equal, state(ours.criterion), before))
    # The reverse, as the page says.
    shared = {k: v for k, v in ours.state_dict().items() if ".memory_bank." not in k}
    theirs.load_state_dict(shared)
    # What is missing otherwise is an error as ever.
    half = ours.state_dict()
    del half["criterion.memory_bank.queue_ptr"]
    assert 'Missing key(s) in state_dict: "criterion.memory_bank.queue_ptr"' in message_of(
        ours.load_state_dict, half
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_state_dict(ours.state_dict())


def on_two_ranks(rank, gather):
    """Losses, gradients and states of lightly's criterion and ours."""
    theirs, ours = pair(size=(24, D), gather_distributed=gather)
    found = []
    for at in range(12):
        query, key = batch(2 * at + rank)
        found.append([(*step(each, query, key), *state(each)) for each in (theirs, ours)])
    return found


@pytest.mark.parametrize("gather", [True, False])
def test_ranks_have_the_bank_that_lightly_gives_them(gather):
    """Without gather_distributed each rank has its own."""
    ranks = on_ranks(2, on_two_ranks, gather)
    for found in ranks:
        for (loss, grad, *wanted), (our_loss, our_grad, *rows) in found:
            close(our_loss, loss, tolerance(torch.float32))
            close(our_grad, grad, tolerance(torch.float32))
            same_rows(rows, wanted)
    (*_, rows, _), (*_, others, _) = (found[-1][1] for found in ranks)
    assert torch.equal(rows, others) == gather


def in_ddp(rank):
    """Of each case: what two steps of a model in DDP raised, and its bank after them."""
    theirs, ours = map(Model, pair())
    found = {}
    for case, model in {"lightly": theirs, "ours, copied": ours, "ours": ours}.items():
        wrapped = DistributedDataParallel(ignore_in_ddp(model) if case == "ours" else model)
        raised = []
        for at in range(2):
            query, key = batch(2 * at + rank)
            raised.append(message_of(lambda q, k, m: m(q, k).backward(), query, key, wrapped))
        if case == "lightly":
            with torch.no_grad():
                wrapped(query, key)  # DDP copies at the beginning of a forward
        found[case] = raised, state(model.criterion)
    return found


def test_ddp_copies_lightlys_bank_and_leaves_ours_alone():
    """With gather_distributed=False, as in lightly's example for several GPUs."""
    ranks = on_ranks(2, in_ddp)
    fine = ["nothing was raised"] * 2
    own = [F.normalize(torch.cat([batch(2 * at + rank)[1] for at in (0, 1)])) for rank in (0, 1)]
    ptr = torch.tensor([2 * B])
    for rank, found in enumerate(ranks):
        raised, (rows, at) = found["lightly"]
        assert raised == fine
        same_rows((rows[: 2 * B], at), (own[0], ptr))  # the second rank's keys are lost
        for message in found["ours, copied"][0]:
            assert "copies rank 0's memory" in message
            assert "call ignore_in_ddp(self) in the module" in message
        raised, (rows, at) = found["ours"]
        assert raised == fine
        same_rows((rows[: 2 * B], at), (own[rank], ptr))
