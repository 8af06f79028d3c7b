"""The example's networks against what was recorded of the published ones."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from models import model_dict
from models.resnet import ResNet
from models.shufflenet import channel_shuffle
from models.vgg import VGG
from models.wide_resnet import WideResNet

np = pytest.importorskip("numpy")

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "zoo_state_dicts.json").read_text())
OUTPUTS = np.load(DATA / "zoo_outputs.npz")
RECORDED = sorted({key.split(".")[0] for key in OUTPUTS.files})
#: The smallest network of each family.
FAMILIES = ["resnet8", "wrn_16_1", "vgg8", "ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


def recorded_weight(key: str, shape: list[int]) -> torch.Tensor:
    """As when the outputs were recorded: drawn by the key's hash, scaled by its kind."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    seed = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)
    drawn = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()
    if key.endswith("running_var"):
        return 1 + 0.1 * drawn.abs()
    if len(shape) == 1:
        return 0.1 * drawn + (1 if key.endswith("weight") else 0)
    return drawn * math.sqrt(2 / math.prod(shape[1:]))


def recorded_network(name: str) -> nn.Module:
    shapes = PUBLISHED[name]["state_dict"]
    with torch.device("meta"):  # first weights would be drawn in vain
        network = model_dict[name](num_classes=100).eval()
    weights = {key: recorded_weight(key, shape) for key, shape in shapes.items()}
    network.load_state_dict(weights, assign=True)
    return network


def recorded_images() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 32, 32))).float()


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((value - wanted).norm() / wanted.norm()).item()


def test_every_published_architecture_is_there():
    assert set(model_dict) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_are_the_published_ones(name):
    with torch.device("meta"):
        network = model_dict[name](num_classes=100)
        features, logits = network(torch.randn(1, 3, 32, 32), is_feat=True)
    state = [(key, list(value.shape)) for key, value in network.state_dict().items()]
    assert state == list(PUBLISHED[name]["state_dict"].items())
    assert [list(feature.shape[1:]) for feature in features] == PUBLISHED[name]["features"]
    assert logits.shape == (1, 100)
    assert features[-1].shape == (1, network.feature_dim)


@pytest.mark.parametrize("name", RECORDED)
@torch.no_grad()
def test_outputs_are_the_recorded_ones(name):
    network, images = recorded_network(name), recorded_images()
    features, logits = network(images, is_feat=True)
    exact_features, exact_logits = network.double()(images.double(), is_feat=True)
    for kind, single, exact in (
        ("feature", features[-1], exact_features[-1]),
        ("logits", logits, exact_logits),
    ):
        # The recorded run was one in float32 too; its sums had another order than ours.
        error = relative(single, exact)
        assert error < 1e-5
        assert relative(torch.from_numpy(OUTPUTS[f"{name}.{kind}"]), exact) < 4 * error


@pytest.mark.parametrize("name", ["ResNet50", "ShuffleV2"])
@torch.no_grad()
def test_torchvision_computes_the_same(name):
    """Of these no outputs were recorded; torchvision's differ in the stem only, replaced here."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        if name == "ResNet50":
            peer = torchvision.models.resnet50(num_classes=100)
            peer.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        else:
            peer = torchvision.models.shufflenet_v2_x1_0(num_classes=100)
            peer.conv1[0] = nn.Conv2d(3, 24, 1, bias=False)
    peer.maxpool = nn.Identity()
    network, images = recorded_network(name).double(), recorded_images().double()
    # Other names, the same order.
    weights = network.state_dict().values()
    peer.load_state_dict(dict(zip(peer.state_dict(), weights, strict=True)), assign=True)
    peer.eval()
    assert relative(network(images), peer(images)) < 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_trained(name):
    network = model_dict[name](num_classes=10)
    images = torch.randn(2, 3, 32, 32)
    logits = network(images)
    logits.logsumexp(dim=1).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "ResNet50", "ShuffleV1", "ShuffleV2"])
@torch.no_grad()
def test_features_are_taken_after_the_relu(name):
    features, _ = model_dict[name]().eval()(torch.randn(1, 3, 32, 32), is_feat=True)
    assert all((feature >= 0).all() for feature in features)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ResNet50", "MobileNetV2"])
def test_convolutions_start_kaiming_normal(name):
    convolutions = [m for m in model_dict[name]().modules() if isinstance(m, nn.Conv2d)]
    largest = max(convolutions, key=lambda convolution: convolution.weight.numel())
    fan_out = largest.out_channels * math.prod(largest.kernel_size)
    count = largest.weight.numel()
    # The deviation of n normal values is known up to a share of sqrt(1 / 2n).
    tolerance = 5 / math.sqrt(2 * count)
    assert largest.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance)


@pytest.mark.parametrize(
    "make", [lambda: ResNet(9), lambda: WideResNet(18, 1), lambda: VGG(12)], ids=["9", "18", "12"]
)
def test_impossible_depths_are_refused(make):
    with pytest.raises(ValueError, match="depth must be"):
        make()


#: From what stands before a stage's last ReLU to its output; the other families have none there.
FINISH = {"MobileNetV2": lambda x: x, "ShuffleV2": lambda x: channel_shuffle(x.relu(), 2)}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_preactivations_become_the_features(name):
    network, images = recorded_network(name), recorded_images()
    features, _ = network(images, is_feat=True)
    before = network.preactivations(images)
    if name.startswith("wrn"):  # after the norm of what follows
        norms = network.block2.layer[0].bn1, network.block3.layer[0].bn1, network.bn1
        wanted = [norm(x) for norm, x in zip(norms, features[1:-1], strict=True)]
        found = before
        assert torch.equal(before[-1].relu().mean(dim=(2, 3)), features[-1])
    else:
        wanted, found = features[1:-1], [FINISH.get(name, torch.relu)(x) for x in before]
    assert all(map(torch.equal, found, wanted))
    assert len(found) == len(wanted)
    assert name == "MobileNetV2" or all((x < 0).any() for x in before)
