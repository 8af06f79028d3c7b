"""Residual networks for CIFAR of depth 6n + 2 (arXiv 1512.03385, section 4.2)."""

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

#: Channels of the stem and of the three stages.
WIDTHS = (16, 16, 32, 64)
#: Of the networks called x4: the stages are four times as wide, the stem twice.
WIDTHS_X4 = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.before_relu(x))

    def before_relu(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + self.downsample(x)


class ResNet(ImageClassifier):
    """Features: after the stem, after each of three stages, pooled.

    Convolutions start Kaiming-normal, norms at one and zero, the linear layer as PyTorch makes it.
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int] = WIDTHS, num_classes: int = 100
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2, at least 8; got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = make_stage(BasicBlock, widths[0], widths[1], blocks, stride=1)
        self.layer2 = make_stage(BasicBlock, widths[1], widths[2], blocks, stride=2)
        self.layer3 = make_stage(BasicBlock, widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def features(self, images: Tensor) -> list[Tensor]:
        maps = run_stages(self._stem(images), [self.layer1, self.layer2, self.layer3])
        return [*maps, pool(maps[-1])]

    def preactivations(self, images: Tensor) -> list[Tensor]:
        return run_before_relu(self._stem(images), [self.layer1, self.layer2, self.layer3])

    def _stem(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(images)))
