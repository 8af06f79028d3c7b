"""The architectures of the published CIFAR-100 teachers and students, for 32×32 images.

    from models import make_model

    student = make_model("resnet8x4", num_classes=100)
    features, logits = student(images, is_feat=True)

Keys and shapes of the state_dicts are those of the published checkpoints.
"""

from collections.abc import Callable
from functools import partial

import torch

from .base import ImageClassifier
from .mobilenet import MobileNetV2
from .resnet import WIDTHS_X4, ResNet
from .resnet_bottleneck import ResNet50
from .shufflenet import ShuffleV1
from .shufflenet_v2 import ShuffleV2
from .vgg import CONVOLUTIONS, VGG
from .wide_resnet import WideResNet

__all__ = ["ImageClassifier", "make_model", "model_dict"]

model_dict: dict[str, Callable[..., ImageClassifier]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, WIDTHS_X4) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{widen}": partial(WideResNet, depth, widen)
        for depth in (16, 40)
        for widen in (1, 2)
    },
    **{f"vgg{depth}": partial(VGG, depth) for depth in CONVOLUTIONS},
    "ResNet50": ResNet50,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}


def make_model(name: str, num_classes: int) -> ImageClassifier:
    """A network of ``model_dict``, on the CPU whatever PyTorch's default device is, so that equal
    seeds give equal weights wherever it is trained."""
    with torch.device("cpu"):
        return model_dict[name](num_classes=num_classes)
