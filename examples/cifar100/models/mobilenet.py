"""MobileNetV2 (arXiv 1801.04381) of half width, its strides reduced for small images."""

from functools import partial
from typing import cast

from torch import Tensor, nn

from .base import (
    ImageClassifier,
    initialise_convolutions,
    initialise_head,
    make_stage,
    pool,
    run_stages,
)

#: Expansion, channels, blocks, stride of each stage: the paper's table 2 with half the channels and
#: without the stride of the second stage.
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
#: The stages after which a feature is taken: the last of each size.
FEATURE_STAGES = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; residual where the shape is kept."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *(nn.Conv2d(in_channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            *(nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(ImageClassifier):
    """Features: after the stem, after the last stage of each size, which ends in no ReLU, pooled.

    Convolutions start Kaiming-normal, norms at one and zero, the linear layer normal with standard
    deviation 0.01 and zero biases. The ReLU is not capped at 6.
    """

    after_maps = ("conv2",)

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        channels = 16
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
            *(nn.BatchNorm2d(channels), nn.ReLU()),
        )
        self.blocks = nn.Sequential()
        for expansion, out_channels, blocks, stride in STAGES:
            block = partial(InvertedResidual, expansion=expansion)
            self.blocks.append(make_stage(block, channels, out_channels, blocks, stride))
            channels = out_channels
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialise_convolutions(self)
        initialise_head(self.head)

    @property
    def head(self) -> nn.Linear:
        return cast(nn.Linear, self.classifier[0])

    def features(self, images: Tensor) -> list[Tensor]:
        stem, *stages = run_stages(self.conv1(images), list(self.blocks))
        return [stem, *(stages[i] for i in FEATURE_STAGES), pool(self.conv2(stages[-1]))]

    def preactivations(self, images: Tensor) -> list[Tensor]:
        """The features themselves, which end in no ReLU."""
        return self.features(images)[1:-1]
