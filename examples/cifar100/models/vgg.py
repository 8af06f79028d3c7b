"""VGG with batch norm (arXiv 1409.1556), one linear layer after the convolutions."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import ImageClassifier, initialise_convolutions, initialise_head, pool

#: Convolutions in each of the five blocks; with the linear layers that the original had at its
#: end, their number is the depth.
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(ImageClassifier):
    """Features: after each of five blocks, pooled.

    Convolutions start Kaiming-normal with zero biases, norms at one and zero, the linear layer
    normal with standard deviation 0.01 and zero biases.
    """

    def __init__(self, depth: int, num_classes: int = 100) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {list(CONVOLUTIONS)}; got {depth}")
        counts = CONVOLUTIONS[depth]
        self.block0 = _block(3, 64, counts[0])
        self.block1 = _block(64, 128, counts[1])
        self.block2 = _block(128, 256, counts[2])
        self.block3 = _block(256, 512, counts[3])
        self.block4 = _block(512, 512, counts[4])
        self.classifier = nn.Linear(512, num_classes)
        initialise_convolutions(self)
        initialise_head(self.classifier)

    @property
    def head(self) -> nn.Linear:
        return self.classifier

    def features(self, images: Tensor) -> list[Tensor]:
        maps = [self.block0(images)]
        for block in (self.block1, self.block2, self.block3):
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        # No pooling before the last block: 4×4 pixels are left.
        maps.append(self.block4(maps[-1]))
        return [*maps, pool(maps[-1])]

    def preactivations(self, images: Tensor) -> list[Tensor]:
        x, found = self.block0(images), []
        for block in (self.block1, self.block2, self.block3, self.block4):
            found.append(block[:-1](x if block is self.block4 else F.max_pool2d(x, 2)))
            x = F.relu(found[-1])
        return found


def _block(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU()]
        in_channels = out_channels
    return nn.Sequential(*layers)
