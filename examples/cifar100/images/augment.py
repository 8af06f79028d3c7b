"""Random crops and flips: drawn for a whole epoch at once, applied to a batch on its device."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a training image.

    Args:
        padding: black pixels put round the image before a crop of its own size. Default 4, as
            published; 0 leaves the image where it is.
        flip: whether half of the images are mirrored left to right. Default True, as published.
    """

    padding: int = 4
    flip: bool = True


class Draws(NamedTuple):
    """One epoch's random choices for N samples.

    ``top`` and ``left``, int64 [N] in 0 … 2·padding, are the crop's corner in the padded image;
    ``flip``, bool [N].
    """

    top: Tensor
    left: Tensor
    flip: Tensor

    def rows(self, index: Tensor) -> "Draws":
        return Draws(self.top[index], self.left[index], self.flip[index])

    def to(self, device: torch.device) -> "Draws":
        return Draws(*(choice.to(device, non_blocking=True) for choice in self))


def draw(count: int, augmentation: Augmentation, generator: np.random.Generator) -> Draws:
    """Choices for samples 0 … ``count`` − 1: corners uniform, flips with probability one half."""
    corners = generator.integers(2 * augmentation.padding + 1, size=(2, count))
    flip = generator.random(count) < (0.5 if augmentation.flip else 0.0)
    top, left = torch.from_numpy(corners)
    return Draws(top, left, torch.from_numpy(flip))


def crop_and_flip(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """The batch padded with zeros, cropped to its old size and mirrored, each image in its own way.

    Args:
        images: [B, C, H, W] of any dtype, not normalised yet: the published pipeline pads with
            black, not with the mean colour.
        draws: of these B images, on their device.
        padding: the ``Augmentation``'s that the draws were made for.

    Returns:
        [B, C, H, W], contiguous. A few kernels for the whole batch, and no host sync.
    """
    channels, height, width = images.shape[1:]
    padded = F.pad(images, [padding] * 4)
    rows = draws.top[:, None] + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    columns = draws.left[:, None] + torch.where(draws.flip[:, None], width - 1 - across, across)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    places = places.flatten(1)[:, None, :].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).view_as(images)


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixels / 255 − mean) / std; on a CPU bit by bit torchvision's ToTensor and Normalize.

    Args:
        pixels: uint8 [B, C, H, W].
        mean, std: float32 [C, 1, 1] on their device, of values in [0, 1].

    Returns:
        float32 [B, C, H, W].
    """
    return pixels.float().div_(255).sub_(mean).div_(std)
