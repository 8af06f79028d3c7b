"""ResNet-50 (arXiv 1512.03385, table 1); its stem for small images neither strides nor pools."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import (
    ImageClassifier,
    initialise_convolutions,
    make_shortcut,
    make_stage,
    pool,
    run_before_relu,
    run_stages,
)

#: A block's output is this many times as wide as its 3×3 convolution.
EXPANSION = 4


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // EXPANSION
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.before_relu(x))

    def before_relu(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class ResNet50(ImageClassifier):
    """Features: after the stem, after each of four stages, pooled.

    Convolutions start Kaiming-normal, norms at one and zero, the linear layer as PyTorch makes it.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = make_stage(Bottleneck, 64, 256, blocks=3, stride=1)
        self.layer2 = make_stage(Bottleneck, 256, 512, blocks=4, stride=2)
        self.layer3 = make_stage(Bottleneck, 512, 1024, blocks=6, stride=2)
        self.layer4 = make_stage(Bottleneck, 1024, 2048, blocks=3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        initialise_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        return self.linear

    def features(self, images: Tensor) -> list[Tensor]:
        maps = run_stages(self._stem(images), self._stages())
        return [*maps, pool(maps[-1])]

    def preactivations(self, images: Tensor) -> list[Tensor]:
        return run_before_relu(self._stem(images), self._stages())

    def _stem(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(images)))

    def _stages(self) -> list[nn.Sequential]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]
