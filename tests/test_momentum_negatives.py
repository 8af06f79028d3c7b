"""Negatives: uniform draws, and the published loader's modes."""

import pytest
import torch

from rrd_kernels import ContrastSampler, RRDLoss
from rrd_kernels.momentum.negatives import draw_contrast_idx

#: Of a chi-squared statistic over its degrees of freedom, whose deviation is sqrt(2 / freedom): a
#: right sampler passes six of them once in 10^8 runs, and these are seeded.
DEVIATIONS = 6


def uniform(counts: torch.Tensor) -> bool:
    expected = counts.double().mean()
    freedom = counts.numel() - 1
    statistic = ((counts - expected).square() / expected).sum() / freedom
    return abs(statistic - 1) < DEVIATIONS * (2 / freedom) ** 0.5


def test_uniform_draws(device):
    idx = torch.tensor([3, 8, 3], device=device)
    drawn = draw_contrast_idx(idx, 50, 20000)
    assert drawn.shape == (3, 20001)
    assert drawn.device.type == device.type
    assert torch.equal(drawn[:, 0], idx)
    for row in drawn[:, 1:].cpu():
        assert uniform(torch.bincount(row, minlength=50))
    generator = torch.Generator(device).manual_seed(1)
    first = draw_contrast_idx(idx, 50, 30, generator=generator)
    generator.manual_seed(1)
    assert torch.equal(draw_contrast_idx(idx, 50, 30, generator=generator), first)


def targets(classes=7, each=30):
    """Classes of different sizes, in no order."""
    labels = torch.repeat_interleave(torch.arange(classes), each + 5 * torch.arange(classes))
    return labels[torch.randperm(len(labels))]


@pytest.fixture(params=["host", "device"])
def make(request, device, monkeypatch):
    """A sampler by either way of drawing without replacement."""
    if request.param == "host" and device.type != "cpu":
        pytest.skip("on a GPU there is one way")
    if request.param == "device":
        monkeypatch.setattr(ContrastSampler, "_draw_on_host", ContrastSampler._draw_on_device)
    return lambda *args, **kwargs: ContrastSampler(*args, device=device, **kwargs)


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_negatives_are_distinct_and_of_other_classes(mode, make, device):
    labels = targets().to(device)
    sampler = make(labels.cpu(), 100, mode=mode)
    idx = torch.randperm(len(labels))[:40].to(device)
    drawn = sampler(idx)
    assert drawn.shape == (40, 101)
    first, negatives = drawn[:, 0], drawn[:, 1:]
    assert (labels[negatives] != labels[idx, None]).all()
    assert all(len(row.unique()) == 100 for row in negatives)
    assert torch.equal(labels[first], labels[idx])
    assert torch.equal(first, idx) == (mode == "exact")


def test_every_negative_is_as_likely(make, device):
    labels = targets().to(device)
    sampler = make(labels.cpu(), 50)
    idx = torch.full((2000,), 3, device=device)
    counts = torch.bincount(sampler(idx)[:, 1:].flatten(), minlength=len(labels))
    others = labels != labels[3]
    assert (counts[~others] == 0).all()
    # Without replacement the counts vary less than independent draws would: by 1 - K / n.
    spread = counts[others].double()
    expected = spread.mean()
    statistic = (spread - expected).square().mean() / (expected * (1 - 50 / len(spread)))
    assert abs(statistic.item() - 1) < DEVIATIONS * (2 / len(spread)) ** 0.5


def test_every_positive_is_as_likely(make, device):
    labels = targets().to(device)
    sampler = make(labels.cpu(), 5, mode="relax")
    idx = torch.full((20000,), 3, device=device)
    counts = torch.bincount(sampler(idx)[:, 0], minlength=len(labels))
    own = labels == labels[3]
    assert (counts[~own] == 0).all()
    assert uniform(counts[own])


def test_a_class_with_too_few_negatives_repeats_them(make, device):
    labels = torch.tensor([0] * 90 + [1] * 10, device=device)
    sampler = make(labels.cpu(), 40)  # class 0 has 10 negatives, class 1 has 90
    drawn = sampler(torch.tensor([0, 95], device=device))[:, 1:]
    assert (labels[drawn[0]] == 1).all()
    assert len(drawn[0].unique()) <= 10
    assert (labels[drawn[1]] == 0).all()
    assert len(drawn[1].unique()) == 40
    everywhere = make(labels.cpu(), 200)(torch.tensor([0, 95], device=device))[:, 1:]
    assert (labels[everywhere] != torch.tensor([[0], [1]], device=device)).all()


def test_seeds(make, device):
    generator = torch.Generator(device).manual_seed(4)
    sampler = make(targets(), 20, generator=generator)
    idx = torch.arange(9, device=device)
    first = sampler(idx)
    assert not torch.equal(sampler(idx), first)
    generator.manual_seed(4)
    assert torch.equal(sampler(idx), first)


def test_sequences_and_gaps_between_class_numbers():
    sampler = ContrastSampler([7, 7, 900, 900, -3], size=3)
    assert sorted(sampler(torch.tensor([0]))[0].tolist()) == [0, 2, 3, 4]
    assert sampler(torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (([1, 1, 1],), ValueError, "two classes"),
        (([0.5, 1.0],), TypeError, "integers"),
        (([[0, 1]],), ValueError, r"\[n_data\]"),
        (([0, 1], 0), ValueError, "at least 1"),
        (([0, 1], 2.0), TypeError, "an int"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, kind, text):
    with pytest.raises(kind, match=text):
        ContrastSampler(*arguments)


def test_bad_calls():
    with pytest.raises(ValueError, match="mode must be one of"):
        ContrastSampler([0, 1], 1, mode="strict")
    sampler = ContrastSampler([0, 1, 1], 1)
    for wrong in ([0], torch.tensor([0.0]), torch.tensor([True]), torch.tensor([[0]])):
        with pytest.raises(TypeError, match=r"int64 Tensor \[B\]"):
            sampler(wrong)
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=r"in \[0, 3\)"):
            sampler(torch.tensor([wrong]))


def test_negatives_for_a_loss(device):
    """What the two make together is what the criterion takes."""
    labels = targets()
    criterion = RRDLoss(
        s_dim=6, t_dim=5, feat_dim=8, nce_k=20, memory_type="momentum", n_data=len(labels)
    ).to(device)
    sampler = ContrastSampler(labels, 20, device=device)
    idx = torch.arange(4, device=device)
    f_s, f_t = torch.randn(4, 6, device=device), torch.randn(4, 5, device=device)
    assert criterion(f_s, f_t, idx, sampler(idx)).isfinite()
