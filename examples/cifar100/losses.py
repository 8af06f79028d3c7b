"""The total loss r·CE + a·KD + b·(loss of features)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.losses import FeatureLoss, Features


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Hinton's distillation: KL(teacher ‖ student) of softened classes, times T².

    Args:
        student_logits, teacher_logits: [B, classes].
        temperature: T > 0.

    Returns:
        A scalar float32, the mean over the batch.

    Source: Hinton et al., arXiv 1503.02531.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


class DistillationLoss(nn.Module):
    """r·CE + a·KD + b·(loss of features), and each of the three.

    Args:
        r, a, b: weights; a term of weight zero is not computed.
        kd_temperature: T of KD.
        of_features: the loss that b weighs, by the name of its term; none where b is zero. A
            :class:`FeatureLoss` gets all features, another one, RRD or CRD, the last.

    Shapes: called with the features, as ``model(images, is_feat=True)`` returns them, and logits
    [B, classes] of both, int64 labels [B], the samples' numbers [B] and their columns [B, P] or
    None; returns the total, and a dict of the terms, all scalars.
    """

    def __init__(
        self, r: float, a: float, b: float, kd_temperature: float, **of_features: nn.Module
    ) -> None:
        super().__init__()
        self.r, self.a, self.b = r, a, b
        self.kd_temperature = kd_temperature
        for name, loss in of_features.items():
            self.add_module(name, loss)

    def forward(
        self,
        student: tuple[Features, Tensor],
        teacher: tuple[Features, Tensor] | None,
        labels: Tensor,
        idx: Tensor,
        contrast_idx: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        features, logits = student
        terms = {"ce": F.cross_entropy(logits.float(), labels)}
        total = self.r * terms["ce"]
        if teacher is None:
            return total, terms
        teacher_features, teacher_logits = teacher
        if self.a:
            terms["kd"] = kd_loss(logits, teacher_logits, self.kd_temperature)
            total = total + self.a * terms["kd"]
        for name, of_features in self.named_children() if self.b else ():
            if isinstance(of_features, FeatureLoss):
                terms[name] = of_features(features, teacher_features)
            else:
                last = features[-1], teacher_features[-1]
                terms[name] = of_features(*last, idx, contrast_idx)
            total = total + self.b * terms[name]
        return total, terms


def correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many labels [B] are among the k largest of their logits [B, classes]; int64 []."""
    k = min(k, logits.shape[1])
    return (logits.topk(k, dim=1).indices == labels[:, None]).sum()


def check_finite(loss: Tensor, terms: dict[str, Tensor], step: int) -> None:
    """Stops a training whose loss is not a number any more, and says which term it was.

    Raises:
        FloatingPointError: the total loss is not finite.
    """
    if not torch.isfinite(loss):
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step} ({values}). Lower --learning_rate, or give "
            f"--amp bf16 in place of fp16; the last checkpoint was written before this"
        )
