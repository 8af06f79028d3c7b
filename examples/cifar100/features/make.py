"""Makes the loss of features that --distill names, for two networks."""

import argparse
from collections.abc import Callable

import torch

from features.losses import (
    AttentionLoss,
    CorrelationLoss,
    FeatureLoss,
    HintLoss,
    ProbabilisticLoss,
    RelationalLoss,
    SelectivityLoss,
    SimilarityLoss,
    VariationalLoss,
)
from features.regressor import ConvolutionalRegressor
from features.singular_vectors import SingularVectorLoss
from features.two_stages import BoundaryLoss, FactorLoss, FlowLoss
from models import ImageClassifier

Shapes = list[torch.Size]


def make_feature_loss(
    options: argparse.Namespace, student: ImageClassifier, teacher: ImageClassifier
) -> FeatureLoss:
    """The loss of ``options.distill``, its modules on the CPU, whose random numbers are the same
    wherever it trains.

    Args:
        options: the command line's; ``hint_layer`` and ``feat_dim`` count.
        student, teacher: both on one device. Neither is changed.

    Raises:
        ValueError: the method does not fit the networks, or torchdistill is not installed.
    """
    s, t = _shapes(student), _shapes(teacher)
    made: dict[str, Callable[[], FeatureLoss]] = {
        "hint": lambda: _hint(options, s, t),
        "attention": lambda: AttentionLoss(len(s[1:-1])),
        "similarity": SimilarityLoss,
        "correlation": lambda: CorrelationLoss(s[-1][0], t[-1][0], options.feat_dim),
        "vid": lambda: VariationalLoss(_channels(s[1:-1]), _channels(t[1:-1])),
        "rkd": RelationalLoss,
        "pkt": ProbabilisticLoss,
        "abound": lambda: BoundaryLoss(s[1:-1], t[1:-1]),
        "factor": lambda: FactorLoss(s[-2][0], t[-2][0]),
        "fsp": FlowLoss,
        "nst": SelectivityLoss,
        "kdsvd": SingularVectorLoss,
    }
    if options.distill in ("attention", "vid", "abound", "fsp", "nst", "kdsvd"):
        _check_stages(options, s, t)
    if options.distill == "fsp":
        _check_channels(options, s[:-1], t[:-1])
    if options.distill == "kdsvd":
        _check_channels(options, s[1:-1], t[1:-1])
    with torch.device("cpu"):
        return made[options.distill]()


@torch.no_grad()
def _shapes(network: ImageClassifier) -> Shapes:
    """(C, H, W) of its maps, and (D,) of the pooled feature."""
    training, parameter = network.training, next(network.parameters())
    features, _ = network.eval()(parameter.new_zeros(1, 3, 32, 32), is_feat=True)
    network.train(training)
    return [feature.shape[1:] for feature in features]


def _channels(shapes: Shapes) -> list[int]:
    return [shape[0] for shape in shapes]


def _hint(options: argparse.Namespace, s: Shapes, t: Shapes) -> HintLoss:
    layer, maps = options.hint_layer, min(len(s), len(t)) - 1
    if layer >= maps:
        raise ValueError(
            f"--hint_layer must be one of the {maps} feature maps that both networks have, 0 to "
            f"{maps - 1}; got {layer}"
        )
    return HintLoss(ConvolutionalRegressor(s[layer], t[layer], relu=True), layer)


def _check_stages(options: argparse.Namespace, s: Shapes, t: Shapes) -> None:
    if len(s) != len(t):
        raise ValueError(
            f"--distill {options.distill} compares stage by stage, but {options.model_s} has "
            f"{len(s) - 2} and {options.model_t} {len(t) - 2}; take other networks"
        )


def _check_channels(options: argparse.Namespace, s: Shapes, t: Shapes) -> None:
    if _channels(s) != _channels(t):
        raise ValueError(
            f"--distill {options.distill} needs the teacher's channels in the student's maps, but "
            f"{options.model_s} has {_channels(s)} and {options.model_t} {_channels(t)}; take "
            f"other networks"
        )
