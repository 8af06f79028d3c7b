"""The convolution that brings a student's feature map to the shape of a teacher's."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConvolutionalRegressor(nn.Module):
    """A convolution and a batch norm, and then a ReLU where ``relu`` is true.

    Args:
        s_shape, t_shape: (C, H, W) of the two maps, with H = W.
        relu: whether a ReLU follows.

    Raises:
        ValueError: the student's map is smaller than the teacher's, and not by half.

    Source: ConvReg of github.com/HobbitLong/RepDistiller at b84f547.
    """

    def __init__(self, s_shape: Sequence[int], t_shape: Sequence[int], *, relu: bool) -> None:
        super().__init__()
        s_channels, s_size, _ = s_shape
        t_channels, t_size, _ = t_shape
        self.conv: nn.Module
        if s_size == 2 * t_size:
            self.conv = nn.Conv2d(s_channels, t_channels, 3, stride=2, padding=1)
        elif 2 * s_size == t_size:
            self.conv = nn.ConvTranspose2d(s_channels, t_channels, 4, stride=2, padding=1)
        elif s_size >= t_size:
            self.conv = nn.Conv2d(s_channels, t_channels, 1 + s_size - t_size)
        else:
            raise ValueError(
                f"a student's map of {s_size}×{s_size} pixels cannot be brought to the teacher's "
                f"{t_size}×{t_size}; take other networks, or with --distill hint another "
                f"--hint_layer"
            )
        self.bn = nn.BatchNorm2d(t_channels)
        self.relu = relu

    def forward(self, feature_map: Tensor) -> Tensor:
        out = self.bn(self.conv(feature_map))
        return F.relu(out) if self.relu else out
