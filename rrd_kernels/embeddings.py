"""The two projections that every memory has."""

import torch
from torch import Tensor, nn

from rrd_kernels import validation as check
from rrd_kernels.recomputation import Recomputations


def _project(linear: nn.Linear, features: Tensor) -> Tensor:
    """Projects pooled features [B, dim] or [B, dim, 1, 1] of any floating dtype."""
    features = features.flatten(1)
    # Autocast casts features and weight to its own dtype, but leaves float64 alone.
    autocast = torch.is_autocast_enabled(features.device.type)
    if not autocast or torch.float64 in (features.dtype, linear.weight.dtype):
        features = features.to(linear.weight.dtype)
    return linear(features)


class Embeddings(nn.Module):
    """Projects student and teacher features to embeddings of one width.

    Args:
        s_dim: width of the student's features.
        t_dim: width of the teacher's features.
        feat_dim: width D of the embeddings.
        device, dtype: as in :class:`torch.nn.Linear`.

    Attributes:
        embed_s: Linear(s_dim, feat_dim), trained.
        embed_t: Linear(t_dim, feat_dim), without gradient.

    Raises:
        TypeError, ValueError: a width that is not a positive int.

    Source: the published code of arXiv 2407.12073.
    """

    def __init__(
        self,
        s_dim: int,
        t_dim: int,
        feat_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("s_dim", s_dim), ("t_dim", t_dim), ("feat_dim", feat_dim)):
            check.check_size(name, value)
        super().__init__()
        # The published order of random draws (embed_s, embed_t, then the memory's rows): equal
        # seeds give equal state.
        self.embed_s = nn.Linear(s_dim, feat_dim, device=device, dtype=dtype)
        self.embed_t = nn.Linear(t_dim, feat_dim, device=device, dtype=dtype).requires_grad_(False)
        self.recomputations = Recomputations()

    def check_features(self, f_s: Tensor, f_t: Tensor, device: torch.device) -> None:
        """Raises unless both are equally large batches of the right width, on ``device``."""
        check.check_features("f_s", f_s, self.embed_s.in_features, device)
        check.check_features("f_t", f_t, self.embed_t.in_features, device)
        if f_s.shape[0] != f_t.shape[0]:
            raise ValueError(
                f"f_s and f_t must have the same batch; got {tuple(f_s.shape)} and "
                f"{tuple(f_t.shape)}"
            )

    def project(self, f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings z_s and z_t [B, D], unnormalised; z_t without a gradient."""
        z_s = _project(self.embed_s, f_s)
        with torch.no_grad():
            z_t = _project(self.embed_t, f_t)
        return z_s, z_t
