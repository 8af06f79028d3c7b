"""Wide residual networks of depth 6n + 4, without dropout (arXiv 1605.07146)."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .base import ImageClassifier, initialise_convolutions, make_stage, pool, run_stages


class PreActivationBlock(nn.Module):
    """Norm and ReLU come before each convolution; where the width changes, a projection of the
    activated input takes the place of the input itself."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(ImageClassifier):
    """Features: after the stem and after each of three stages, none of which ends in a ReLU; then
    pooled, after the last norm and ReLU.

    Convolutions start Kaiming-normal, norms at one and zero, the linear layer's weight as PyTorch
    makes it and its bias at zero.
    """

    after_maps = ("bn1",)

    def __init__(self, depth: int, widen: int, num_classes: int = 100) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4, at least 10; got {depth}")
        blocks = (depth - 4) // 6
        widths = 16, 16 * widen, 32 * widen, 64 * widen
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.block2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.block3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def features(self, images: Tensor) -> list[Tensor]:
        maps = run_stages(self.conv1(images), [self.block1, self.block2, self.block3])
        return [*maps, pool(F.relu(self.bn1(maps[-1])))]

    def preactivations(self, images: Tensor) -> list[Tensor]:
        """After the norm that follows each stage. The last norm is not trained by them, as in the
        published code, which counts it to the classifier."""
        _, first, second, third, _ = self.features(images)
        fixed = {name: parameter.detach() for name, parameter in self.bn1.named_parameters()}
        return [
            self.block2.get_submodule("layer.0.bn1")(first),
            self.block3.get_submodule("layer.0.bn1")(second),
            functional_call(self.bn1, fixed, (third,)),
        ]


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """In a module of its own, called layer, as in the checkpoints' keys."""
    stage = make_stage(PreActivationBlock, in_channels, out_channels, blocks, stride)
    return nn.Sequential(OrderedDict(layer=stage))
