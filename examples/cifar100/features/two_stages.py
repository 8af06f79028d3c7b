"""Methods with a first stage, in which cross-entropy has no part: AB, FT and FSP."""

import argparse
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import Trainer
from features.losses import (
    FeatureLoss,
    of_one_size,
    recorded,
    recorded_pairs,
    torchdistill,
)
from features.regressor import ConvolutionalRegressor
from images.loaders import TrainLoader
from models import ImageClassifier
from run import Run


class TwoStageLoss(FeatureLoss):
    """A loss with a first stage. ``in_second_stage`` says whether it has a part in the second."""

    in_second_stage = False

    def first_stage(
        self, student: ImageClassifier, teacher: ImageClassifier, images: Tensor
    ) -> Tensor:
        """The first stage's loss of a batch, a scalar."""
        with torch.no_grad():
            taught, _ = teacher(images, is_feat=True)
        features, _ = student(images, is_feat=True)
        return self(features, taught)

    def end_first_stage(self) -> None:
        """Fixes what only the first stage trains."""


class BoundaryLoss(TwoStageLoss):
    """AB (arXiv 1811.03233): on which side of zero each teacher's neuron is, before the
    stages' last ReLU; with margin 1, half the weight for each stage before the last, times 3/1000
    as published. The first stage trains the student up to its last map.

    Args:
        s_shapes, t_shapes: (C, H, W) of the stages' maps.
    """

    def __init__(self, s_shapes: Sequence[torch.Size], t_shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(
            nn.Identity() if s == t else ConvolutionalRegressor(s, t, relu=False)
            for s, t in zip(s_shapes, t_shapes, strict=True)
        )
        pairs = recorded_pairs(len(self.connectors))
        for at, pair in enumerate(reversed(pairs.values())):
            pair["weight"] = 3e-3 / 2**at
        losses = torchdistill("losses.mid_level")
        self.loss = losses.AltActTransferLoss(pairs, margin=1.0, reduction="mean")

    def first_stage(
        self, student: ImageClassifier, teacher: ImageClassifier, images: Tensor
    ) -> Tensor:
        with torch.no_grad():
            taught = teacher.preactivations(images)
        return self(student.preactivations(images), taught)

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Of the lists that ``preactivations`` returns."""
        connected = [connect(s) for connect, s in zip(self.connectors, student, strict=True)]
        return self.loss(recorded(connected), recorded(teacher))


class FlowLoss(TwoStageLoss):
    """FSP (Yim et al., CVPR 2017): inner products of neighbouring maps' channels over
    all pixels, compared by the mean squared error. Maps of two sizes are averaged to the smaller;
    the paper takes maxima. The first stage trains the student up to its last map, which must have
    the teacher's channels in all maps."""

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        total = student[-1].new_zeros(())
        for s, t in zip(pairwise(student[:-1]), pairwise(teacher[:-1]), strict=True):
            total = total + F.mse_loss(_flow(*s), _flow(*t))
        return total


def _flow(a: Tensor, b: Tensor) -> Tensor:
    """[B, C, H, W] and [B, D, H, W] to [B, C, D]: the mean over all pixels."""
    a, b = (each.flatten(2) for each in of_one_size(a, b))
    return a @ b.mT / a.shape[2]


class FactorLoss(TwoStageLoss):
    """FT (arXiv 1802.04977) of the last map: the student's translator against the factors of a
    paraphraser, which the first stage trains to reconstruct the teacher's map and the second leaves
    as it is. As in RepDistiller, factors are reduced to unit vectors of the channels' mean square,
    and compared by the mean absolute error; the paper does not reduce them.

    Args:
        s_channels, t_channels: of the last maps; factors have half of the teacher's.
    """

    in_second_stage = True

    def __init__(self, s_channels: int, t_channels: int) -> None:
        super().__init__()
        modules = torchdistill("models.wrapper")
        self.paraphraser = modules.Paraphraser4FactorTransfer(0.5, t_channels, uses_bn=False)
        self.translator = modules.Translator4FactorTransfer(s_channels, t_channels // 2)

    def first_stage(
        self, student: ImageClassifier, teacher: ImageClassifier, images: Tensor
    ) -> Tensor:
        with torch.no_grad():
            taught, _ = teacher(images, is_feat=True)
        with torch.autocast(images.device.type, enabled=False):
            wanted = taught[-2].float()
            return F.mse_loss(self.paraphraser(wanted), wanted)

    def end_first_stage(self) -> None:
        self.paraphraser.requires_grad_(False)

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        factors = self.translator(student[-2]), self.paraphraser.encoder(teacher[-2])
        s, t = (F.normalize(f.square().mean(1).flatten(1)) for f in of_one_size(*factors))
        return F.l1_loss(s, t)


def train_first_stage(
    options: argparse.Namespace,
    run: Run,
    loss: TwoStageLoss,
    networks: tuple[ImageClassifier, ImageClassifier],
    loader: TrainLoader,
    device: torch.device,
) -> None:
    """Trains ``--init_epochs`` epochs in a run of their own, the folder ``first_stage`` in the
    student's; or goes on with them. If the second stage has a checkpoint, that has the weights.

    As published: the learning rate does not decay, norms after the student's last map stay in
    evaluation mode, and FT takes a rate of 0.01 where the student is a residual network.

    Args:
        options: the command line's, resolved.
        run: of the second stage.
        loss: its modules are trained, and the student where the loss reaches it.
        networks: student and teacher.
        loader: of the training images.
        device: of all.
    """
    if not run.last.exists():
        student, teacher = networks
        course = {"epochs": options.init_epochs, "lr_decay_epochs": ()}
        own = argparse.Namespace(**vars(options) | course)
        residual = options.model_s.startswith(("resnet", "wrn"))
        rate = 0.01 if options.distill == "factor" and residual else options.learning_rate

        def step(
            images: Tensor, labels: Tensor, idx: Tensor
        ) -> tuple[Tensor, dict[str, Tensor], None]:
            for name in student.after_maps:  # after the trainer has called train()
                student.get_submodule(name).eval()
            return loss.first_stage(student, teacher, images), {}, None

        stage = Run(run.folder / "first_stage", options.model_s, resume=options.resume)
        modules = {"model": student, "criterion": loss}
        print(f"first stage: {options.init_epochs} epochs")
        rates = rate, options.projection_lr
        Trainer(own, stage, student, modules, step, (loader, None), device, *rates).fit()
        print(f"second stage: {options.epochs} epochs")
    loss.end_first_stage()
