"""Losses of features: the published methods beside KD, CRD and RRD.

Source: github.com/HobbitLong/RepDistiller at b84f547, for whose losses the published weights are;
docs/distillation-methods.md says where they are not the papers' formulas, and which of them
torchdistill computes.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = Sequence[Tensor]


def torchdistill(module: str) -> Any:
    """One of torchdistill's modules.

    Raises:
        ValueError: torchdistill is not installed.
    """
    try:
        return importlib.import_module(f"torchdistill.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(
            "this --distill needs torchdistill; install it with: pip install 'torchdistill>=1.1.5'"
        ) from error


class FeatureLoss(nn.Module):
    """A loss of a student's features against a teacher's.

    Shapes: called with two lists as ``model(images, is_feat=True)`` returns them, maps [B, C, H, W]
    and the pooled feature [B, D] as the last item; returns a scalar. Features of less than 32 bits
    become float32, and autocast is off.
    """

    def forward(self, student: Features, teacher: Features) -> Tensor:
        with torch.autocast(student[-1].device.type, enabled=False):
            return self.compare(_at_least_float32(student), _at_least_float32(teacher))

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        raise NotImplementedError


def _at_least_float32(features: Features) -> list[Tensor]:
    return [each.to(torch.promote_types(each.dtype, torch.float32)) for each in features]


def of_one_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, H], the larger one averaged to the pixels of the smaller, of whose size
    its own is a multiple."""
    size = min(a.shape[2], b.shape[2])
    # Adaptive pooling has no deterministic gradient on a GPU.
    a, b = (f if f.shape[2] == size else F.avg_pool2d(f, f.shape[2] // size) for f in (a, b))
    return a, b


def stages_of(student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The maps after each stage, without the stem's, of one size."""
    return [of_one_size(*maps) for maps in zip(student[1:-1], teacher[1:-1], strict=True)]


def recorded(features: Features) -> dict[str, dict[str, Any]]:
    """As torchdistill's hooks would leave them, by their place in the list."""
    return {str(at): {"output": feature} for at, feature in enumerate(features)}


def recorded_pairs(stages: int) -> dict[str, Any]:
    """What to compare with what, for torchdistill."""
    where = [{"io": "output", "path": str(at)} for at in range(stages)]
    return {at["path"]: {"student": at, "teacher": at} for at in where}


class HintLoss(FeatureLoss):
    """FitNet (arXiv 1412.6550): mean squared error of a regressor of the student's map.

    Args:
        regressor: from the student's map to the teacher's shape.
        layer: which feature.
    """

    def __init__(self, regressor: nn.Module, layer: int) -> None:
        super().__init__()
        self.regressor, self.layer = regressor, layer

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return F.mse_loss(self.regressor(student[self.layer]), teacher[self.layer])


class AttentionLoss(FeatureLoss):
    """AT (arXiv 1612.03928): unit vectors of the channels' mean square, compared by the mean
    squared error, as its authors' code does; the paper has the norm."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        losses = torchdistill("losses.mid_level")
        self.loss = losses.ATLoss(at_pairs=recorded_pairs(stages), mode="code")

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        maps = zip(*stages_of(student, teacher), strict=True)
        return self.loss(*map(recorded, maps))


class SimilarityLoss(FeatureLoss):
    """SP (arXiv 1907.09682) of the last map: Gram matrices of the batch, their rows
    at unit norm."""

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        flat = (feature[-2].flatten(1) for feature in (student, teacher))
        s, t = (F.normalize(rows @ rows.T) for rows in flat)
        return F.mse_loss(s, t)


class CorrelationLoss(FeatureLoss):
    """CC (arXiv 1904.01802) in its authors' code: products of neighbouring samples' differences.
    The paper's formula compares kernel matrices instead.

    Args:
        s_dim, t_dim: widths of the pooled features.
        feat_dim: width of the two linear embeddings, both of which are trained.
    """

    def __init__(self, s_dim: int, t_dim: int, feat_dim: int) -> None:
        super().__init__()
        self.embed_s = nn.Linear(s_dim, feat_dim)
        self.embed_t = nn.Linear(t_dim, feat_dim)

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        difference = (self.embed_s(student[-1]) - self.embed_t(teacher[-1])).abs()
        # A batch of one image has no neighbours, and loss 0.
        return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


class VariationalLoss(FeatureLoss):
    """VID (arXiv 1904.05835): a Gaussian's negative log-likelihood of each stage, with
    a trained mean for each pixel and a trained variance for each channel.

    Args:
        s_channels, t_channels: of the stages' maps.
    """

    def __init__(self, s_channels: Sequence[int], t_channels: Sequence[int]) -> None:
        super().__init__()
        regressor = torchdistill("models.wrapper").Regressor4VID
        self.regressors = nn.ModuleList(
            regressor(s, t, t, eps=1e-5, init_pred_var=5.0)
            for s, t in zip(s_channels, t_channels, strict=True)
        )
        pairs = recorded_pairs(len(self.regressors))
        self.loss = torchdistill("losses.mid_level").VIDLoss(feature_pairs=pairs)

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        maps_s, maps_t = zip(*stages_of(student, teacher), strict=True)
        predicted = [regress(s) for regress, s in zip(self.regressors, maps_s, strict=True)]
        return self.loss(recorded(predicted), recorded(maps_t))


class RelationalLoss(FeatureLoss):
    """RKD (arXiv 1904.05068) of the pooled features: distances and angles, with
    the paper's weights of 25 and 50."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = torchdistill("losses.mid_level").RKDLoss("0", "0", 25.0, 50.0, "mean")

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        if len(student[-1]) < 2:  # without a distance, by whose mean it would divide
            return 0 * student[-1].sum()
        return self.loss(recorded(student[-1:]), recorded(teacher[-1:]))


class ProbabilisticLoss(FeatureLoss):
    """PKT (arXiv 1803.10837) of the pooled features: the divergence of cosine
    similarities taken as probabilities, as a mean over all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = torchdistill("losses.mid_level").PKTLoss("0", "output", "0", "output")

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return self.loss(recorded(student[-1:]), recorded(teacher[-1:]))


class SelectivityLoss(FeatureLoss):
    """NST (arXiv 1707.01219): the maximum mean discrepancy of each stage's channels,
    each a unit vector of its pixels, with the polynomial kernel of degree 2."""

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (a @ b.mT).square().mean()

        total = student[-1].new_zeros(())
        for maps in stages_of(student, teacher):
            s, t = (F.normalize(each.flatten(2), dim=2) for each in maps)
            total = total + kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
        return total
