"""ShuffleNet (arXiv 1707.01083) with 3 groups, its stem a 1×1 convolution for small images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ImageClassifier, make_stage, pool, run_before_relu, run_stages

GROUPS = 3
STEM_CHANNELS = 24


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn, so that the next grouped convolution mixes the groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """The paper's figure 2: b where the stride is 1, c where it is 2; a ReLU also follows the
    depthwise convolution. In c the pooled input is stacked on the branch, not added to it, and
    counts among the output's channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        branch = out_channels if stride == 1 else out_channels - in_channels
        inner = branch // 4
        # The stem's few channels are not split.
        self.groups = 1 if in_channels == STEM_CHANNELS else GROUPS
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.before_relu(x))

    def before_relu(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)


class ShuffleV1(ImageClassifier):
    """Features: after the stem, after each of three stages, pooled.

    All weights start as PyTorch makes them: Kaiming-uniform convolutions, norms at one and zero.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = make_stage(ShuffleUnit, STEM_CHANNELS, 240, blocks=4, stride=2)
        self.layer2 = make_stage(ShuffleUnit, 240, 480, blocks=8, stride=2)
        self.layer3 = make_stage(ShuffleUnit, 480, 960, blocks=4, stride=2)
        self.linear = nn.Linear(960, num_classes)

    @property
    def head(self) -> nn.Linear:
        return self.linear

    def features(self, images: Tensor) -> list[Tensor]:
        maps = run_stages(self._stem(images), [self.layer1, self.layer2, self.layer3])
        return [*maps, pool(maps[-1])]

    def preactivations(self, images: Tensor) -> list[Tensor]:
        return run_before_relu(self._stem(images), [self.layer1, self.layer2, self.layer3])

    def _stem(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(images)))
