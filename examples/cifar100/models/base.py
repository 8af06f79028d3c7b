"""What the families share: how a network is called, how stages are built, the first weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """A network that pools its last feature map and classifies that with one linear layer.

    ``model(images)`` takes images [B, 3, 32, 32] and returns logits [B, num_classes];
    ``model(images, is_feat=True)`` returns (features, logits). The features are a list: the stem's
    and the stages' outputs [B, C, H, W], after the ReLU where they end in one, and as the last
    item the pooled feature [B, feature_dim] of which the logits are made.
    """

    #: Children between the last map and the pooled feature.
    after_maps: tuple[str, ...] = ()

    def features(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def preactivations(self, images: Tensor) -> list[Tensor]:
        """The stages' outputs, ``features[1:-1]``, before the ReLU that they end in; the families
        that end in none say what stands there."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Linear:
        """The layer that makes logits of the last feature; its name is the checkpoints'."""
        raise NotImplementedError

    @property
    def feature_dim(self) -> int:
        """The width of the last feature."""
        return self.head.in_features

    def forward(
        self, images: Tensor, is_feat: bool = False
    ) -> Tensor | tuple[list[Tensor], Tensor]:
        features = self.features(images)
        logits = self.head(features[-1])
        return (features, logits) if is_feat else logits


def run_stages(x: Tensor, stages: Sequence[nn.Module]) -> list[Tensor]:
    """``x`` and what each stage makes of what the one before it made."""
    features = [x]
    for stage in stages:
        features.append(stage(features[-1]))
    return features


def run_before_relu(
    x: Tensor, stages: Sequence[nn.Sequential], finish: Callable[[Tensor], Tensor] = F.relu
) -> list[Tensor]:
    """What each stage's last block has before its last ReLU; ``finish`` makes the stage's output
    of it."""
    found = []
    for stage in stages:
        last: Any = stage[-1]
        before = last.before_relu(stage[:-1](x))
        found.append(before)
        x = finish(before)
    return found


def pool(feature_map: Tensor) -> Tensor:
    """[B, C, H, W] to [B, C]: the mean over all pixels."""
    return feature_map.mean(dim=(2, 3))


def make_stage(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    out_channels: int,
    blocks: int,
    stride: int,
) -> nn.Sequential:
    """``block(in_channels, out_channels, stride)`` and then blocks that keep width and size."""
    return nn.Sequential(
        block(in_channels, out_channels, stride),
        *(block(out_channels, out_channels, 1) for _ in range(blocks - 1)),
    )


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A projection where a residual block changes width or size, else empty: the identity."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def initialise_convolutions(model: nn.Module) -> None:
    """Kaiming-normal weights that keep the gradient's variance (fan-out, ReLU), zero biases.

    Norms are left as PyTorch makes them, weights one and biases zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_head(head: nn.Linear) -> None:
    """Normal weights of standard deviation 0.01, zero biases: the first logits are near zero."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
