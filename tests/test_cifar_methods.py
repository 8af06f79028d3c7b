"""The losses of features of examples/cifar100 against their formulas, and a tiny run of each."""

import csv
import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchdistill", "torchvision"):
    pytest.importorskip(package)

import torch.nn.functional as F
from test_cifar import as_a_process_of_its_own, assert_equal, state_of, student, teacher

import engine
import options as flags
import train_student
from features.losses import (
    AttentionLoss,
    CorrelationLoss,
    HintLoss,
    ProbabilisticLoss,
    RelationalLoss,
    SelectivityLoss,
    SimilarityLoss,
    VariationalLoss,
)
from features.make import make_feature_loss
from features.regressor import ConvolutionalRegressor
from features.singular_vectors import SingularVectorLoss, first_singular_vectors
from features.two_stages import BoundaryLoss, FactorLoss, FlowLoss
from losses import DistillationLoss
from methods import FEATURES, METHODS, TWO_STAGES, method_of
from models import make_model

# Fixtures.
__all__ = ["as_a_process_of_its_own", "teacher"]


@pytest.fixture(autouse=True)
def one_thread():
    """Small batched decompositions on several threads wait for busy cores at each matrix."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


#: Those that this file is about.
NEW = [distill for distill in FEATURES if distill not in ("crd", "rrd")]
B, EMBEDDED = 5, 3
#: Channels and pixels in a row of stem and stages; the second stage is larger in the student.
STUDENT = [(4, 8), (4, 8), (6, 8), (8, 2)]
TEACHER = [(3, 8), (6, 8), (8, 4), (10, 2)]
#: float64: sums of fewer than 10⁴ products, each right to some units of 2⁻⁵³, of terms that do not
#: cancel beyond a factor of 10.
CLOSE = 1e-11


def features(shapes, seed):
    """As a network would return them, of ReLUs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(B, c, size, size, dtype=torch.float64, generator=generator).relu()
        for c, size in shapes
    ]
    return [*maps, maps[-1].mean(dim=(2, 3))]


def shrunk(feature_map, size):
    """[B, C, H, H] to [B, C, size, size]: means of blocks."""
    factor = feature_map.shape[2] // size
    blocks = feature_map.unflatten(3, (size, factor)).unflatten(2, (size, factor))
    return blocks.mean(dim=(3, 5))


def stages(s, t):
    """The stages' maps, without the stem's, of one size."""
    sizes = [min(a.shape[2], b.shape[2]) for a, b in zip(s, t, strict=True) if a.ndim == 4]
    return [(shrunk(s[i], sizes[i]), shrunk(t[i], sizes[i])) for i in range(1, len(sizes))]


def hint(loss, s, t):
    out = loss.regressor(s[2])
    return sum(((out[i] - t[2][i]) ** 2).sum() for i in range(B)) / t[2].numel()


def attention(loss, s, t):
    """The mean, not the paper's norm."""
    total = 0
    for maps in stages(s, t):
        units = []
        for feature_map in maps:
            energy = torch.einsum("bchw,bchw->bhw", feature_map, feature_map).flatten(1)
            units.append(energy / energy.norm(dim=1, keepdim=True))
        total += ((units[0] - units[1]) ** 2).mean()
    return total


def similarity(loss, s, t):
    """‖G_T − G_S‖² / B², rows of G at unit norm."""
    grams = []
    for f in (s[-2], t[-2]):
        gram = torch.einsum("ichw,jchw->ij", f, f)
        grams.append(torch.stack([row / row.norm() for row in gram]))
    return ((grams[0] - grams[1]) ** 2).sum() / B**2


def correlation(loss, s, t):
    """RepDistiller's, which is not the paper's."""
    e_s = s[-1] @ loss.embed_s.weight.T + loss.embed_s.bias
    e_t = t[-1] @ loss.embed_t.weight.T + loss.embed_t.bias
    return sum((e_s[i] - e_t[i]).abs() @ (e_s[i + 1] - e_t[i + 1]).abs() for i in range(B - 1)) / (
        B - 1
    )


def vid(loss, s, t):
    """Mean of log σ + (t − μ)² / 2σ², σ² = log(1 + exp α) + ε."""
    total = 0
    for (a, b), regressor in zip(stages(s, t), loss.regressors, strict=True):
        mean = a
        for layer in (0, 2, 4):
            mean = mean.relu() if layer else mean
            weight = regressor.regressor[layer].weight[:, :, 0, 0]
            mean = torch.einsum("oc,bchw->bohw", weight, mean)
        variance = (regressor.soft_plus_param.exp() + 1).log() + 1e-5
        spread = variance.sqrt()[:, None, None]
        total += (spread.log() + (b - mean) ** 2 / (2 * spread**2)).mean()
    return total


def huber(x):
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def rkd(loss, s, t):
    """25 and 50 times the mean Huber loss of distances and of angles, of all pairs and triples."""
    distances, angles = [], []
    for f in (s[-1], t[-1]):
        pairs = [[(f[i] - f[j]).norm() for j in range(B)] for i in range(B)]
        mean = sum(map(sum, pairs)) / (B * B - B)
        distances.append([d / mean for row in pairs for d in row])
        found = []
        for j in range(B):
            units = [F.normalize(f[i] - f[j], dim=0) for i in range(B)]
            found += [units[i] @ units[k] for i in range(B) for k in range(B)]
        angles.append(found)
    d, a = ([huber(x - y) for x, y in zip(*both, strict=True)] for both in (distances, angles))
    return 25 * sum(d) / B**2 + 50 * sum(a) / B**3


def probabilities(f):
    """(cosine + 1)/2, each row at sum 1."""
    unit = f / f.norm(dim=1, keepdim=True)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


def pkt(loss, s, t):
    p, q = probabilities(t[-1]), probabilities(s[-1])
    return sum(p[i, j] * (p[i, j] / q[i, j]).log() for i in range(B) for j in range(B)) / B**2


def abound(loss, s, t):
    """A hinge of margin 1, squared, on the wrong side of zero; of preactivations."""
    total = 0
    for weight, connect, a, b in zip((0.25, 0.5, 1), loss.connectors, s, t, strict=True):
        out = connect(a)
        wrong = torch.where(b > 0, 1 - out, 1 + out).clamp(min=0)
        total += 0.003 * weight * (wrong**2).sum() / B
    return total


def factor(loss, s, t):
    """Of RepDistiller, which reduces the factors' channels."""
    units = []
    for map_ in (loss.translator(s[-2]), loss.paraphraser.encoder(t[-2])):
        energy = (map_**2).mean(dim=1).flatten(1)
        units.append(energy / energy.norm(dim=1, keepdim=True))
    return (units[0] - units[1]).abs().mean()


def fsp(loss, s, t):
    """Mean of (G_S − G_T)², G the inner products of two maps' channels / pixels."""
    total = 0
    for i in range(3):
        flows = []
        for f in (s, t):
            size = min(f[i].shape[2], f[i + 1].shape[2])
            a, b = shrunk(f[i], size), shrunk(f[i + 1], size)
            flows.append(torch.einsum("bchw,bdhw->bcd", a, b) / size**2)
        total += ((flows[0] - flows[1]) ** 2).mean()
    return total


def nst(loss, s, t):
    """MMD² of the channels with the kernel (xᵀy)², a sample at a time."""
    total = 0
    for maps in stages(s, t):
        for i in range(B):
            a, b = ([row / row.norm() for row in f[i].flatten(1) if row.norm() > 0] for f in maps)
            n, m = (f.shape[1] for f in maps)
            total += sum((x @ y) ** 2 for x in a for y in a) / n**2 / B
            total += sum((x @ y) ** 2 for x in b for y in b) / m**2 / B
            total -= 2 * sum((x @ y) ** 2 for x in a for y in b) / (n * m) / B
    return total


def kdsvd(loss, s, t):
    """By eigenvectors of xᵀx, a sample at a time."""
    total = 0
    for i in range(B):
        chosen = []
        for a, b in zip(s[1:-1], t[1:-1], strict=True):
            v_s, v_t = (torch.linalg.eigh(f[i].flatten(1) @ f[i].flatten(1).T)[1] for f in (a, b))
            wanted = v_t[:, -1] if v_t[:, -1].sum() > 0 else -v_t[:, -1]
            cosines = wanted @ v_s[:, -4:]
            best = cosines.abs().argmax()
            chosen.append((v_s[:, -4:][:, best] * cosines[best].sign(), wanted))
        for before, after in pairwise(chosen):
            kernels = [
                torch.exp(-((y[:, None] - x[None]) ** 2) / 8)
                for x, y in zip(before, after, strict=True)
            ]
            total += ((kernels[0] - kernels[1]) ** 2).sum() / B
    return total


def shapes(maps):
    return [(c, size, size) for c, size in maps[1:]]


def channels(maps):
    return [c for c, _ in maps[1:]]


#: How each is made; for the last two the teacher has the student's channels.
MADE = {
    hint: lambda: HintLoss(ConvolutionalRegressor((6, 8, 8), (8, 4, 4), relu=True), 2),
    attention: lambda: AttentionLoss(3),
    similarity: SimilarityLoss,
    correlation: lambda: CorrelationLoss(8, 10, EMBEDDED),
    vid: lambda: VariationalLoss(channels(STUDENT), channels(TEACHER)),
    rkd: RelationalLoss,
    pkt: ProbabilisticLoss,
    abound: lambda: BoundaryLoss(shapes(STUDENT), shapes(TEACHER)),
    factor: lambda: FactorLoss(8, 10),
    nst: SelectivityLoss,
    fsp: FlowLoss,
    kdsvd: SingularVectorLoss,
}


@pytest.fixture(params=MADE, ids=lambda formula: formula.__name__)
def case(request):
    """A loss, its formula, and features of student and teacher."""
    torch.manual_seed(0)
    formula = request.param
    loss = MADE[formula]().double()
    s, t = features(STUDENT, 1), features(TEACHER, 2)
    if formula in (fsp, kdsvd):
        t = features([(c, size) for (c, _), (_, size) in zip(STUDENT, TEACHER, strict=True)], 2)
    if formula is abound:  # before the ReLU
        s, t = ([f - 0.3 for f in each[1:-1]] for each in (s, t))
    return loss, formula, s, t


def test_every_method_has_a_formula():
    assert sorted(formula.__name__ for formula in MADE) == sorted(NEW)


def test_losses_are_their_formulas(case):
    loss, formula, s, t = case
    wanted = formula(loss, s, t).item()
    if formula is pkt:
        # The code adds e = 1e-7 in the logarithms: p·log((p + e)/(q + e)) is off by at most
        # e·|1 − p/q|.
        p, q = probabilities(t[-1]), probabilities(s[-1])
        close = {"abs": 1e-7 * (1 - p / q).abs().max().item()}
        assert wanted > 100 * close["abs"]
    else:
        close = {"rel": CLOSE}
    assert loss(s, t).item() == pytest.approx(wanted, **close)


def test_gradients_are_those_of_the_formulas(case):
    """To the student's features, and to every parameter of the loss."""
    loss, formula, s, t = case
    reached = [f.requires_grad_() for f in s]
    parameters = [p for n, p in loss.named_parameters() if not n.startswith("paraphraser")]
    found, wanted = (
        torch.autograd.grad(value, [*reached, *parameters], allow_unused=True)
        for value in (loss(s, t), formula(loss, s, t))
    )
    assert any(each is not None and each.any() for each in found[: len(reached)])
    for mine, theirs in zip(found, wanted, strict=True):
        if theirs is None:
            assert mine is None or not mine.any()
            continue
        # Sums over fewer than 10⁴ terms that may cancel, relative to the largest; PKT's 1e-7 in
        # its logarithms is relative to probabilities of 1/5.
        allowed = 1e-5 if formula is pkt else CLOSE
        assert (mine - theirs).abs().max() <= allowed * theirs.abs().max()
    assert all(each is not None for each in found[len(reached) :])


def test_half_precision_is_computed_in_float32(case):
    """Also where autocast is on, whose products would have eight bits."""
    loss, _, s, t = case
    loss = loss.float()
    low = [[f.bfloat16() for f in each] for each in (s, t)]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*low)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(*([f.float() for f in each] for each in low)))


def test_a_last_batch_of_one_image_has_a_loss(case):
    loss, formula, s, t = case
    value = loss.eval()([f[:1].requires_grad_() for f in s], [f[:1] for f in t])
    assert value.isfinite()
    if formula in (correlation, rkd):
        assert value == 0
    value.backward()


@pytest.mark.parametrize(("channels", "pixels"), [(4, 3), (7, 2)], ids=["tall", "wide"])
def test_singular_vectors_have_derivatives(channels, pixels):
    """By finite differences; of v·vᵀ, which has no sign. With channels that are dead."""

    def projections(x):
        v = first_singular_vectors(x, 2)
        return v[:, :, None] * v[:, None]

    x = torch.randn(2, channels, pixels, pixels, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(projections, x)
    dead = x.detach().clone()
    dead[:, :2] = 0
    dead.requires_grad_()
    # Of the first vector, which a dead channel does not touch: eigenvalues of 0 are equal.
    first_singular_vectors(dead, 1).sum().backward()
    assert dead.grad.isfinite().all()
    assert dead.grad.any()


def test_maps_without_singular_vectors_are_named():
    with pytest.raises(FloatingPointError, match=r"not finite\. Lower --learning_rate"):
        first_singular_vectors(torch.full((1, 3, 2, 2), math.nan), 1)


@pytest.mark.parametrize(("s", "t", "size"), [(8, 4, 4), (4, 8, 8), (7, 5, 5)])
def test_regressors_make_the_teachers_shape(s, t, size):
    regressor = ConvolutionalRegressor((2, s, s), (3, t, t), relu=False)
    assert regressor(torch.randn(2, 2, s, s)).shape == (2, 3, size, size)


def test_regressors_refuse_what_they_cannot_make():
    with pytest.raises(
        ValueError, match="map of 5×5 pixels cannot be brought to the teacher's 7×7"
    ):
        ConvolutionalRegressor((2, 5, 5), (3, 7, 7), relu=True)


#: Of the gradients' test, which leaves their weights alone.
NETWORKS = make_model("resnet8", 10), make_model("resnet14", 10)


def test_the_first_stage_trains_norms_as_published(teacher, tmp_path):
    """Those before the last map; the one after it keeps its start, and its weights."""
    small = ["--distill", "abound", "--model_s", "wrn_16_1", "--images", "16", "--epochs", "1"]
    run = student(teacher, tmp_path, *small, "--init_epochs", "1")
    state = torch.load(run / "first_stage" / "wrn_16_1_last.pth", weights_only=True)["model"]
    for norm, trained in (("bn1", 0), ("block3.layer.0.bn1", 2)):  # there, once more for the loss
        assert state[f"{norm}.num_batches_tracked"] == trained
        assert (state[f"{norm}.weight"] == 1).all() == (trained == 0)


@pytest.mark.parametrize("distill", NEW)
def test_gradients_reach_the_student_and_never_the_teacher(distill):
    options = train_student.parse_arguments(["--path_t", "x", "--distill", distill])
    options.model_s, options.model_t = "resnet8", "resnet14"
    torch.manual_seed(0)
    trained, taught = (network.train() for network in NETWORKS)
    taught.eval().zero_grad()
    loss = make_feature_loss(options, trained, taught)
    assert trained.training
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    if distill in TWO_STAGES:
        trained.zero_grad()
        loss.first_stage(trained, taught, images).backward()
        gradient = {name for name, p in trained.named_parameters() if p.grad is not None}
        body = {name for name, _ in trained.named_parameters() if not name.startswith("fc.")}
        assert gradient == (set() if distill == "factor" else body)
        own = {name for name, p in loss.named_parameters() if p.grad is not None}
        assert own == {
            name for name, _ in loss.named_parameters() if not name.startswith("translator")
        }
        loss.end_first_stage()
        loss.zero_grad()
    if distill not in ("abound", "fsp"):
        trained.zero_grad()
        criterion = DistillationLoss(0.0, 0.0, 1.0, 4.0, **{distill: loss})
        step = train_student.make_step(trained, taught, criterion, None)
        total, terms, _ = step(images, labels, labels)
        assert terms.keys() == {"ce", distill}
        total.backward()
        assert any(p.grad is not None and p.grad.any() for p in trained.parameters())
        for name, p in criterion.named_parameters():
            assert (p.grad is not None) == ("paraphraser" not in name), name
    assert all(p.grad is None for p in taught.parameters())


# --- The page.

PAGE = Path(__file__).resolve().parents[1] / "docs" / "distillation-methods.md"


def test_the_page_has_the_names_and_weights():
    row = r"^\| (\w+) \(.*?\) \| `(\w+)` \| ([\d.]+) \|"
    rows = re.findall(row, PAGE.read_text(), re.MULTILINE)
    assert {distill: (name, float(b)) for name, distill, b in rows} == FEATURES


# --- The command line.

SCRIPT = """\
--distill hint --model_s resnet8x4 -a 0 -b 100
--distill attention --model_s resnet8x4 -a 0 -b 1000
--distill similarity --model_s resnet8x4 -a 0 -b 3000
--distill correlation --model_s resnet8x4 -a 0 -b 0.02
--distill vid --model_s resnet8x4 -a 0 -b 1
--distill rkd --model_s resnet8x4 -a 0 -b 1
--distill pkt --model_s resnet8x4 -a 0 -b 30000
--distill abound --model_s resnet8x4 -a 0 -b 1
--distill factor --model_s resnet8x4 -a 0 -b 200
--distill fsp --model_s resnet8x4 -a 0 -b 50
--distill nst --model_s resnet8x4 -a 0 -b 50
"""
"""RepDistiller's scripts/run_cifar_distill.sh at b84f547."""


def settings_of(*arguments):
    options = train_student.parse_arguments(["--path_t", "x", *arguments])
    return flags.plain_settings(options)


@pytest.mark.parametrize("line", SCRIPT.splitlines())
def test_the_published_commands_are_the_defaults(line):
    """But for a b that has no effect."""
    given = settings_of(*line.split())
    default = settings_of(*line.split()[:4])
    assert method_of(given) == method_of(default) == FEATURES[given["distill"]].name
    if given["distill"] not in ("abound", "fsp"):
        assert given == default


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_known_by_its_settings(method):
    assert method_of(settings_of(*METHODS[method])) == method


@pytest.mark.parametrize(
    "other",
    [
        *("hint --hint_layer 3", "hint -b 1", "factor --init_epochs 2", "abound --init_epochs 0"),
        *("attention -a 1", "fsp -r 2", "vid -b 2", "factor -b 0"),
    ],
)
def test_other_settings_are_none_of_the_methods(other):
    assert method_of(settings_of("--distill", *other.split())) is None


def test_flags_of_other_methods_change_nothing():
    """Published scripts give them all; a run that began before they had a meaning goes on."""
    given = ["--hint_layer", "1", "--init_epochs", "7"]
    for distill in ("kd", "rrd", "attention"):
        assert settings_of("--distill", distill, *given) == settings_of("--distill", distill)
    assert settings_of("--distill", "hint", *given)["hint_layer"] == 1
    assert settings_of("--distill", "factor", *given)["init_epochs"] == 7
    assert settings_of("--distill", "hint")["hint_layer"] == 2
    assert settings_of("--distill", "fsp")["init_epochs"] == 30


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("hint --hint_layer 4", r"one of the 4 feature maps .* 0 to 3; got 4"),
        ("attention --model_s vgg8", "vgg8 has 4 and resnet14 3; take other networks"),
        ("fsp --model_s wrn_16_2", r"needs the teacher's channels .* \[16, 32, 64, 128\]"),
        ("kdsvd --model_s wrn_16_2", r"needs the teacher's channels .* \[32, 64, 128\]"),
    ],
)
def test_networks_that_do_not_fit_are_refused(arguments, text, teacher, tmp_path):
    with pytest.raises(ValueError, match=text):
        student(teacher, tmp_path / "none", "--distill", *arguments.split())
    assert not (tmp_path / "none").exists()


def test_without_torchdistill_the_error_says_how_to_install_it(teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdistill.losses.mid_level", None)
    with pytest.raises(ValueError, match="needs torchdistill; install it with: pip install"):
        student(teacher, tmp_path / "none", "--distill", "attention")
    assert not (tmp_path / "none").exists()
    student(teacher, tmp_path, "--distill", "similarity", "--epochs", "1", "--images", "16")


def test_two_stages_train_in_one_process(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(train_student.processes, "size", lambda: 2)
    with pytest.raises(ValueError, match="--distill abound has two stages, which train in one"):
        student(teacher, tmp_path / "none", "--distill", "abound")
    assert not (tmp_path / "none").exists()


# --- Runs.


def rows_of(run):
    with (run / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("distill", NEW)
def test_a_tiny_run(distill, teacher, tmp_path):
    small = ["--epochs", "1", "--images", "32", "--init_epochs", "1", "-a", "0.5"]
    run = student(teacher, tmp_path, "--distill", distill, *small)
    assert json.loads((run / "settings.json").read_text())["beta"] == FEATURES[distill].b
    (row,) = rows_of(run)
    assert math.isfinite(float(row["train_loss"]))
    assert (f"train_{distill}" in row) == (distill not in ("abound", "fsp"))
    assert "train_kd" in row
    if distill in TWO_STAGES:
        (row,) = rows_of(run / "first_stage")
        assert float(row["train_loss"]) > 0
        assert "train_acc" not in row


@pytest.mark.parametrize(
    ("distill", "model", "rate"),
    [("factor", "resnet8", 0.01), ("factor", "vgg8", 0.02), ("fsp", "resnet8", 0.02)],
)
def test_the_first_stage_has_a_constant_rate(distill, model, rate, teacher, tmp_path):
    """FT's is 0.01 with a residual student, as published."""
    own = ["--distill", distill, "--model_s", model, "--images", "16", "--init_epochs", "2"]
    own += ["--learning_rate", "0.02", "--lr_decay_epochs", "1"]
    run = student(teacher, tmp_path, *own)
    for folder, wanted in ((run / "first_stage", [rate, rate]), (run, [0.02, 0.002])):
        found = [float(row["learning_rate"]) for row in rows_of(folder)]
        assert found == pytest.approx(wanted, rel=1e-6)  # the file has six digits


#: The steps of the two stages of four and four batches at which a run stops.
STOPS = {"vid": [3], "factor": [1, 4, 5], "abound": [2]}


@pytest.mark.parametrize("distill", STOPS)
def test_a_run_that_is_cut_off_goes_on_to_the_same_weights(distill, teacher, tmp_path, monkeypatch):
    """In either stage, and between the two."""
    small = ["--images", "32", "--init_epochs", "2", "--save_steps", "1"]
    options = ["--distill", distill, *small]
    whole = student(teacher, tmp_path / "whole", *options)
    real, calls = engine.Trainer._train_batch, []

    def counted(self, *arguments):
        if [len(calls)] == stops[:1]:
            raise KeyboardInterrupt
        calls.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(engine.Trainer, "_train_batch", counted)
    stops = [*STOPS[distill]]
    while stops:
        with pytest.raises(KeyboardInterrupt):
            student(teacher, tmp_path / "cut", *options, "--resume")
        torch.rand(5)  # whatever else has drawn in between
        stops.pop(0)
    cut = student(teacher, tmp_path / "cut", *options, "--resume")
    assert len(calls) == (8 if distill in TWO_STAGES else 4)  # no step twice
    assert_equal(state_of(cut), state_of(whole))
    if distill in TWO_STAGES:
        assert_equal(state_of(cut / "first_stage"), state_of(whole / "first_stage"))


def test_the_first_stage_is_what_the_second_starts_from(teacher, tmp_path):
    """AB at a rate of zero in the second: the student keeps the first stage's weights, and its
    head those that it was made with."""
    small = ["--distill", "abound", "--epochs", "1", "--images", "32", "--init_epochs", "1"]
    run = student(teacher, tmp_path, *small)
    torch.manual_seed(0)
    made = make_model("resnet8", 10).state_dict()
    first = state_of(run / "first_stage")["model"]
    for name, value in first.items():
        assert torch.equal(value, made[name]) == name.startswith("fc."), name


def interrupted(self):
    """In the place of an epoch, the second stage's first."""
    if self.test_loader is not None:
        raise KeyboardInterrupt
    self.sums.add("loss", torch.zeros(()))


def test_a_first_stage_is_not_overwritten(teacher, tmp_path, monkeypatch):
    options = ["--distill", "fsp", "--images", "32", "--init_epochs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            student(teacher, tmp_path, *options)
    with pytest.raises(FileExistsError, match="first_stage holds a run already; continue it with"):
        student(teacher, tmp_path, *options)
