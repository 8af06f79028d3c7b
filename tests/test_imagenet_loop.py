"""The published ImageNet training, whose own RRDLoss cannot run, with this one in its place.

Its shape is that of github.com/giakoumoglou/distillers at a2ee80b: which modules are collected,
trained and wrapped, the names of its options, and the order of a step. The published arithmetic is
that of the CIFAR class, which the ImageNet class was meant to have.
"""

from argparse import Namespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distillers import share_of
from ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from rrd_kernels import RRDLoss

EPOCHS, BATCHES, BATCH, CLASSES = 2, 2, 4, 1000
#: As in test_distributed.py: of sums in another order, in float64. Four steps, of which each moves
#: weights by percents.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Network(nn.Module):
    """The smallest that images of 224×224 go through."""

    def __init__(self, width):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 32, stride=32)
        self.fc = nn.Linear(width, CLASSES)

    def get_feat_modules(self):
        return nn.ModuleList([self.patches, self.fc])

    def forward(self, x, is_feat=False):
        maps = self.patches(x).relu()
        pooled = maps.mean((2, 3))
        logits = self.fc(pooled)
        return ([maps, pooled], logits) if is_feat else logits


def options():
    """What the published command line gives, with a small memory."""
    return Namespace(
        dataset="imagenet",
        distill="rrd",
        cls=1.0,
        div=1.0,
        beta=1.0,
        kd_T=4.0,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        feat_dim=16,
        mode="exact",
        nce_k=3 * BATCH,
        nce_t=0.07,
        nce_m=0.5,
        nce_t_s=0.1,
        nce_t_t=0.02,
        multiprocessing_distributed=dist.is_initialized(),
    )


def loaded():
    """Each batch of an epoch, of all ranks: images and labels, and no numbers of samples."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, 3, 224, 224)
    return [
        (
            torch.randn(shape, generator=generator),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(BATCHES)
    ]


def main_worker(criterion_of, rank=0, ranks=1):
    """The loss of each step, the student's weights, and the criterion."""
    opt = options()
    torch.manual_seed(0)
    model_t, model_s = Network(12), Network(8)
    mock = torch.randn(2, 3, 224, 224)
    model_t.eval()
    model_s.eval()
    feat_t, _ = model_t(mock, is_feat=True)
    feat_s, _ = model_s(mock, is_feat=True)
    opt.s_dim, opt.t_dim, opt.n_data = feat_s[-1].shape[1], feat_t[-1].shape[1], 1281167

    criterion_kd = criterion_of(opt)
    projections = [criterion_kd.embed_s, criterion_kd.embed_t]
    module_list = nn.ModuleList([model_s, *projections])
    trainable_list = nn.ModuleList([model_s, *projections])
    module_list.append(model_t)
    optimizer = torch.optim.SGD(
        trainable_list.parameters(),
        lr=opt.learning_rate,
        momentum=opt.momentum,
        weight_decay=opt.weight_decay,
    )
    if opt.multiprocessing_distributed:
        module_list = [DDP(module) for module in module_list]

    losses = []
    for _ in range(EPOCHS):
        losses += train(module_list, criterion_kd, optimizer, opt, rank, ranks)
        before = [value.clone() for value in criterion_kd.state_dict().values()]
        validate(module_list)
        assert all(map(torch.equal, before, criterion_kd.state_dict().values()))
    return torch.tensor(losses), model_s.state_dict(), criterion_kd


def train(module_list, criterion_kd, optimizer, opt, rank, ranks):
    for module in module_list:
        module.train()
    module_list[-1].eval()
    model_s, model_t = module_list[0], module_list[-1]
    losses = []
    for batch in loaded():
        images, labels = share_of(batch, rank, [BATCH // ranks] * ranks)
        feat_s, logit_s = model_s(images, is_feat=True)
        with torch.no_grad():
            feat_t, logit_t = model_t(images, is_feat=True)
            feat_t = [feature.detach() for feature in feat_t]
        # Which the loop takes from every teacher, whatever the loss.
        plain = model_t.module if opt.multiprocessing_distributed else model_t
        assert plain.get_feat_modules()[-1] is plain.fc
        loss_cls = F.cross_entropy(logit_s, labels)
        loss_div = divergence(logit_s / opt.kd_T, logit_t / opt.kd_T) * opt.kd_T**2
        loss_kd = criterion_kd(feat_s[-1], feat_t[-1])
        loss = opt.cls * loss_cls + opt.div * loss_div + opt.beta * loss_kd
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def divergence(student, teacher):
    """Hinton's, the mean over the batch."""
    logs = F.log_softmax(student, dim=1), F.softmax(teacher, dim=1)
    return F.kl_div(*logs, reduction="batchmean")


def validate(module_list):
    for module in module_list:
        module.eval()
    with torch.no_grad():
        for images, _ in loaded():
            module_list[0](images)


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("error")
def test_the_loop_trains_as_with_the_published_arithmetic():
    for package in ("rich", "tensorboard", "torchvision"):
        pytest.importorskip(package)
    import speed  # here, as each rank imports this module

    def published(opt):
        return speed.PublishedRRD(RRDLoss(opt))

    losses, student, criterion = main_worker(RRDLoss)
    wanted_losses, wanted_student, wanted = main_worker(published)
    torch.testing.assert_close(losses, wanted_losses, **CLOSE)
    torch.testing.assert_close(student, wanted_student, **CLOSE)
    torch.testing.assert_close(criterion.memory.queue, wanted.queue, **CLOSE)
    torch.testing.assert_close(criterion.embed_s.state_dict(), wanted.embed_s.state_dict(), **CLOSE)


def on_a_rank(rank):
    torch.set_default_dtype(torch.float64)
    losses, student, criterion = main_worker(RRDLoss, rank, dist.get_world_size())
    return losses, student, criterion.state_dict()


def test_the_loop_in_two_processes_trains_as_in_one():
    """A DDP around the student, each projection and the teacher, and none around the criterion."""
    losses, student, criterion = main_worker(RRDLoss)
    found = on_ranks(2, on_a_rank)
    each = torch.stack([rank[0] for rank in found])
    torch.testing.assert_close(each.mean(0), losses, **CLOSE)
    for _, states, memory in found:
        torch.testing.assert_close(states, student, **CLOSE)
        torch.testing.assert_close(memory, criterion.state_dict(), **CLOSE)
