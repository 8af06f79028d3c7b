"""KDSVD, distillation of feature maps by their singular vectors (arXiv 1807.06819)."""

from itertools import pairwise

import torch
from torch import Tensor

from features.losses import FeatureLoss

#: Of the student's singular vectors, those among which the teacher's first one looks for its like.
CANDIDATES = 4


class SingularVectorLoss(FeatureLoss):
    """KDSVD: how the channels of one stage resemble those of the next.

    Of each of the teacher's maps, as a matrix of pixels × channels, the first right singular vector
    counts, with the sign that makes its sum positive; of the student's first four the one that is
    most like the teacher's, turned to its side. Between the vectors u and v of neighbouring stages
    stands the Gaussian kernel exp(−(u_i − v_j)² / 8), and the loss sums the squared differences of
    student and teacher, as a mean over the batch.

    The maps must have the same channels in student and teacher.

    Source: RepDistiller's port, github.com/HobbitLong/RepDistiller at b84f547. That one takes the
    signs as LAPACK leaves them, and its gradient is not a number where two singular values are
    equal, as with two dead channels; here such a pair adds nothing to the gradient.
    """

    def compare(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        vectors: list[tuple[Tensor, Tensor]] = []
        for map_s, map_t in zip(student[1:-1], teacher[1:-1], strict=True):
            t = first_singular_vectors(map_t, 1)
            t = torch.where(t.sum(dim=1, keepdim=True) < 0, -t, t)
            s = first_singular_vectors(map_s, CANDIDATES)
            vectors.append((_most_like(t, s), t.squeeze(2)))
        total = student[-1].new_zeros(())
        for (s_before, t_before), (s, t) in pairwise(vectors):
            difference = _kernel(s, s_before) - _kernel(t, t_before)
            total = total + difference.square().sum()
        return total / len(student[-1])


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (-(a[:, :, None] - b[:, None]).square() / 8).exp()


def _most_like(wanted: Tensor, candidates: Tensor) -> Tensor:
    """Of ``candidates`` [B, C, k] the one with the largest cosine to ``wanted`` [B, C, 1] in size,
    turned to its side; [B, C]."""
    cosines = (candidates.mT @ wanted).squeeze(2)
    best = cosines.abs().argmax(dim=1, keepdim=True)
    found = candidates.gather(2, best[:, None].expand(-1, candidates.shape[1], -1))
    return found.squeeze(2) * cosines.gather(1, best).sign()


def first_singular_vectors(feature_map: Tensor, k: int) -> Tensor:
    """The right singular vectors of the k largest singular values of each sample's pixels ×
    channels, with gradients.

    Args:
        feature_map: [B, C, H, W].
        k: how many; at most min(C, H·W) are there.

    Returns:
        [B, C, k], unit vectors, of either sign.

    Raises:
        FloatingPointError: a value is not finite.
    """
    x = feature_map.flatten(2).mT
    with torch.no_grad():
        try:
            _, sizes, vectors = torch.linalg.svd(x, full_matrices=False)
        except torch.linalg.LinAlgError as error:
            raise FloatingPointError(
                "a feature map has no singular vectors: its values are not finite. Lower "
                "--learning_rate"
            ) from error
        all_v, values = vectors.mT, sizes.square()
        v, value = all_v[:, :, :k], values[:, None, :k]
        # What float cannot tell apart, by the rule of torch.linalg.matrix_rank.
        least = max(x.shape[1:]) * torch.finfo(x.dtype).eps * values[:, None, :1]
        gaps = value - values[:, :, None]
        weights = torch.where(gaps.abs() > least, 1 / gaps, 0)
        beyond = torch.where(value > least, 1 / value, 0)
    if not x.requires_grad:
        return v
    # First-order perturbation of the eigenvectors of xᵀx: its change is zero in value, and has the
    # gradient. Directions beyond all_v have the eigenvalue 0.
    changed = x.mT @ (x @ v)
    changed = changed - changed.detach()
    along = all_v.mT @ changed
    return v + all_v @ (weights * along) + beyond * (changed - all_v @ along)
