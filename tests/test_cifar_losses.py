"""The total loss of examples/cifar100, its schedule, and the published defaults."""

import argparse

import pytest
import torch

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

import engine
import train_student
import train_teacher
import transfer_student
from losses import DistillationLoss, kd_loss

B, CLASSES, DIM, T = 5, 7, 3, 4.0


def logits(seed):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(B, CLASSES, generator=generator)


def test_kd_is_the_divergence_of_softened_classes():
    student, teacher = logits(0), logits(1)
    p_s, p_t = ((x.double() / T).softmax(dim=1) for x in (student, teacher))
    wanted = T**2 * (p_t * (p_t / p_s).log()).sum() / B
    # float32: two log-softmaxes of numbers up to 4, each right to a few units of 2^-24, times 16.
    assert kd_loss(student, teacher, T).item() == pytest.approx(wanted.item(), abs=1e-4)
    assert kd_loss(teacher, teacher, T).item() == 0.0


class Constant(torch.nn.Module):
    """In the place of the loss of features."""

    def forward(self, f_s, f_t, idx, contrast_idx):
        assert contrast_idx is None
        return (f_s.sum() - f_t.sum()) * idx.sum()


@pytest.mark.parametrize("of_features", ["rrd", "crd"])
def test_the_total_is_the_weighted_sum_of_its_terms(of_features):
    labels, idx = torch.arange(B), torch.arange(B)
    # RRD and CRD get the last features alone.
    student = ([torch.full((B, 2), 9.0), torch.ones(B, DIM)], logits(0))
    teacher = ([torch.full((B, 4), 9.0), torch.zeros(B, DIM)], logits(1))
    parts = {
        "ce": torch.nn.functional.cross_entropy(student[1], labels),
        "kd": kd_loss(student[1], teacher[1], T),
        of_features: torch.tensor(150.0),  # 5·3 ones times 0 + 1 + 2 + 3 + 4
    }
    for weights in ((2.0, 3.0, 5.0), (1.0, 0.0, 5.0), (0.5, 3.0, 0.0)):
        total, terms = DistillationLoss(*weights, T, **{of_features: Constant()})(
            student, teacher, labels, idx, None
        )
        wanted = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        torch.testing.assert_close(total, wanted)
        assert terms.keys() == {
            name for name, weight in zip(parts, weights, strict=True) if weight or name == "ce"
        }
        for name, term in terms.items():
            torch.testing.assert_close(term, parts[name])


@pytest.mark.parametrize(
    ("epoch", "factor"),
    # Published: lowered after the epochs that are named.
    [(1, 1), (150, 1), (151, 0.1), (180, 0.1), (181, 0.01), (210, 0.01), (211, 1e-3), (240, 1e-3)],
)
def test_the_learning_rate_follows_the_published_schedule(epoch, factor, tmp_path):
    options = train_student.parse_arguments(["--distill", "none"])
    model = torch.nn.Linear(1, 1)
    run = engine.Run(tmp_path, "linear", resume=False)
    device = torch.device("cpu")
    trainer = engine.Trainer(
        options, run, model, {"model": model}, None, (None, None), device, 0.05
    )
    trainer.epoch = epoch
    trainer._set_learning_rate()
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.05 * factor)
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)


def test_projections_may_have_a_learning_rate_of_their_own(tmp_path):
    options = train_student.parse_arguments(["--distill", "none"])
    modules = {"model": torch.nn.Linear(1, 2), "criterion": torch.nn.Linear(2, 3)}
    run = engine.Run(tmp_path, "linear", resume=False)
    device = torch.device("cpu")
    model = modules["model"]
    trainer = engine.Trainer(options, run, model, modules, None, (None, None), device, 0.05, 0.2)
    trainer.epoch = 151
    trainer._set_learning_rate()
    found = {group["lr"]: group["params"] for group in trainer.optimizer.param_groups}
    assert [*found] == pytest.approx([0.005, 0.02])
    for parameters, module in zip(found.values(), modules.values(), strict=True):
        assert [*map(id, parameters)] == [*map(id, module.parameters())]


#: Of the published scripts; --dataset alone is another here, digits.
PUBLISHED = {
    train_student: {
        "batch_size": 64,
        "num_workers": 8,
        "epochs": 240,
        "learning_rate": 0.05,
        "lr_decay_epochs": (150, 180, 210),
        "lr_decay_rate": 0.1,
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "model_s": "resnet8",
        "distill": "kd",
        "trial": "1",
        "gamma": 1.0,
        "kd_T": 4.0,
        "feat_dim": 128,
        "nce_k": 16384,
        "nce_t": 0.07,
        "nce_m": 0.5,
        "mode": "exact",
        "memory_type": "fifo",
        "save_freq": 40,
    },
    train_teacher: {
        "epochs": 240,
        "lr_decay_epochs": (150, 180, 210),
        "trial": "0",
        "save_freq": 40,
    },
    transfer_student: {
        "epochs": 120,
        "lr_decay_epochs": (30, 60, 90),
        "trial": "0",
        "save_freq": 50,
    },
}
NEEDED = {train_student: ["--path_t", "x"], transfer_student: ["--path_s", "resnet8_best.pth"]}


@pytest.mark.parametrize("script", PUBLISHED, ids=lambda script: script.__name__)
def test_defaults_are_the_published(script):
    options = script.parse_arguments(NEEDED.get(script, []))
    model = getattr(options, "model_s", None) or options.model
    options.learning_rate = engine.flags.learning_rate_of(model, options.learning_rate)
    for name, value in PUBLISHED[script].items():
        assert getattr(options, name) == value, name


@pytest.mark.parametrize(("distill", "beta"), [("kd", 0.0), ("rrd", 1.0), ("crd", 0.8)])
def test_the_default_weights_are_the_published(distill, beta):
    options = train_student.parse_arguments(["--path_t", "x", "--distill", distill])
    assert (options.gamma, options.alpha, options.beta) == (1.0, float(distill == "kd"), beta)


def test_crd_takes_and_ignores_flags_of_the_relational_loss():
    """As kd does: nothing is asked of a memory that it does not have."""
    others = ["--nce_k", "32", "--protocol", "2024", "--memory_type", "momentum"]
    options = train_student.parse_arguments(["--path_t", "x", "--distill", "crd", *others])
    assert (options.nce_k, options.beta) == (32, 0.8)


@pytest.mark.parametrize("model", ["MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_small_networks_start_with_a_smaller_rate(model):
    assert engine.flags.learning_rate_of(model, None) == 0.01
    assert engine.flags.learning_rate_of(model, 0.3) == 0.3


def test_published_flags_that_mean_nothing_here_are_taken():
    plain = train_student.parse_arguments(["--path_t", "x"])
    old = ["--print_freq", "100", "--tb_freq", "500", "--init_epochs", "30", "--hint_layer", "2"]
    assert train_student.parse_arguments(["--path_t", "x", *old]) == plain
    assert isinstance(plain, argparse.Namespace)
