"""ShuffleNetV2 (arXiv 1807.11164) of width 1, its stem a 1×1 convolution for small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ImageClassifier, pool, run_before_relu, run_stages
from .shufflenet import channel_shuffle


class Unit(nn.Module):
    """The paper's figure 3c: half of the channels pass, the other half are transformed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _pointwise(half, half)
        self.conv2, self.bn2 = _depthwise(half, stride=1)
        self.conv3, self.bn3 = _pointwise(half, half)

    def forward(self, x: Tensor) -> Tensor:
        passed, out = self._halves(x)
        return channel_shuffle(torch.cat([passed, F.relu(out)], dim=1), 2)

    def before_relu(self, x: Tensor) -> Tensor:
        """Its channels are not shuffled yet, as in the published code. The half that passes has
        been through a ReLU already, which a second one leaves as it is."""
        return torch.cat(self._halves(x), dim=1)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return passed, self.bn3(self.conv3(out))


class DownUnit(nn.Module):
    """The paper's figure 3d: both halves are made of all channels, at half the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1, self.bn1 = _depthwise(in_channels, stride=2)
        self.conv2, self.bn2 = _pointwise(in_channels, half)
        self.conv3, self.bn3 = _pointwise(in_channels, half)
        self.conv4, self.bn4 = _depthwise(half, stride=2)
        self.conv5, self.bn5 = _pointwise(half, half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return channel_shuffle(torch.cat([left, right], dim=1), 2)


class ShuffleV2(ImageClassifier):
    """Features: after the stem, after each of three stages, pooled.

    All weights start as PyTorch makes them: Kaiming-uniform convolutions, norms at one and zero.
    """

    after_maps = ("conv2", "bn2")

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1, self.bn1 = _pointwise(3, 24)
        self.layer1 = _stage(24, 116, units=4)
        self.layer2 = _stage(116, 232, units=8)
        self.layer3 = _stage(232, 464, units=4)
        self.conv2, self.bn2 = _pointwise(464, 1024)
        self.linear = nn.Linear(1024, num_classes)

    @property
    def head(self) -> nn.Linear:
        return self.linear

    def features(self, images: Tensor) -> list[Tensor]:
        maps = run_stages(self._stem(images), [self.layer1, self.layer2, self.layer3])
        return [*maps, pool(F.relu(self.bn2(self.conv2(maps[-1]))))]

    def preactivations(self, images: Tensor) -> list[Tensor]:
        stages = [self.layer1, self.layer2, self.layer3]
        return run_before_relu(
            self._stem(images), stages, lambda before: channel_shuffle(F.relu(before), 2)
        )

    def _stem(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(images)))


def _pointwise(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels)


def _depthwise(channels: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return convolution, nn.BatchNorm2d(channels)


def _stage(in_channels: int, out_channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        DownUnit(in_channels, out_channels), *(Unit(out_channels) for _ in range(units - 1))
    )
