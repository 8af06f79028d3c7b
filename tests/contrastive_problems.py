"""Inputs for the tests of CRD's loss, and how far a result may be from float64."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import momentum_problems
import torch
import torch.nn.functional as F
from momentum_problems import METHODS
from problems import ROUNDING, Rounding, rounding_of
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.functional import sampled_contrastive_loss

__all__ = ["METHODS", "Contrastive", "draw", "within"]

Results = tuple[Tensor, Tensor, Tensor]


@dataclass
class Contrastive:
    z_s: Tensor
    z_t: Tensor
    memory_v1: Tensor
    memory_v2: Tensor
    contrast_idx: Tensor
    normalizers: Tensor
    nce_t: float = 0.07

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the operator takes first."""
        views = (self.z_s, self.z_t, self.memory_v1, self.memory_v2)
        return (*views, self.contrast_idx, self.normalizers)

    def call(self, function: Callable[..., Tensor] = sampled_contrastive_loss, **options) -> Tensor:
        return function(*self.tensors, nce_t=self.nce_t, **options)

    def results(
        self, function: Callable[..., Tensor] = sampled_contrastive_loss, **options
    ) -> Results:
        """[B] losses, and the gradients of their sum for z_s and z_t, [B, D] each."""
        leaves = [z.detach().requires_grad_() for z in (self.z_s, self.z_t)]
        leaf = replace(self, z_s=leaves[0], z_t=leaves[1])
        loss = leaf.call(function, reduction="none", **options)
        return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)

    def float64(self) -> Results:
        """The same by the reference in float64."""
        wide = [t.double() if t.is_floating_point() else t for t in self.tensors]
        return Contrastive(*wide, self.nce_t).results(reference.sampled_contrastive_loss)


def draw(
    batch: int,
    columns: int,
    rows: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_dtype: torch.dtype | None = None,
) -> Contrastive:
    """As for the relational loss; the first sample is told apart well, on both sides."""
    found = momentum_problems.draw(
        batch, columns, rows, dim, "exponential", dtype, device, memory_dtype
    )
    for z, memory in ((found.z_s, found.memory_v2), (found.z_t, found.memory_v1)):
        z[0] = 3 * memory[found.contrast_idx[0, 0]].to(z.dtype)
    return Contrastive(*momentum_problems.views(found), found.normalizers)


def error_bound(problem: Contrastive, rounding: Rounding) -> list[tuple[Tensor, Tensor]]:
    """For each view, first-order bounds on the error of each loss [B] and of each gradient row's
    norm [B].

    A similarity errs as in momentum_problems.error_bound, a logit h = s / T - ln(Z c) by that over
    T, by the rounding of both terms and of their difference, and by that of a logarithm: eta. With
    g = h, or -h for the positive, softplus(g + eta) - softplus(g) is at most sigmoid(g) *
    expm1(eta), and sigmoid(g + eta) at most exp(eta) times sigmoid(g).
    """
    columns, (rows, dim) = problem.contrast_idx.shape[1], problem.memory_v1.shape
    noise = (columns - 1) / rows + 1e-7
    per_product = 2 * rounding.operand + (dim + 4) * rounding.sum
    found = []
    views = ((problem.z_s, problem.memory_v2), (problem.z_t, problem.memory_v1))
    for (z, memory), normalizer in zip(views, problem.normalizers.double(), strict=True):
        unit, columns_rows = F.normalize(z.double(), dim=1), memory.double()[problem.contrast_idx]
        scaled = torch.einsum("bd,bpd->bp", unit, columns_rows) / problem.nce_t
        sizes = torch.einsum("bd,bpd->bp", unit.abs(), columns_rows.abs()) / problem.nce_t
        shift = (normalizer * noise).log()
        logits = scaled - shift
        eta = per_product * sizes + rounding.probability
        eta += 4 * rounding.sum * (scaled.abs() + shift.abs() + logits.abs())
        signed = torch.cat([-logits[:, :1], logits[:, 1:]], 1)
        weights, each = signed.sigmoid(), F.softplus(signed, threshold=40)
        own = 2 * rounding.probability + rounding.summing(columns)
        loss = (weights * eta.expm1() + own * each).sum(1) + 8 * rounding.sum * each.sum(1)
        # On the CPU many terms 1 + exp(-|g|) are multiplied in double before the logarithm.
        loss += 2 * columns * 2.0**-53
        relative = eta.expm1() + own + 2 * rounding.operand + (dim + 8) * rounding.sum
        grad = 2 * (weights * relative * columns_rows.norm(dim=2)).sum(1) / problem.nce_t
        found.append((loss, grad / z.double().norm(dim=1).clamp_min(1e-12)))
    return found


def within(problem: Contrastive, found: Results, precision: str | Rounding) -> bool:
    """Whether losses and both gradients are right, in every sample."""
    if isinstance(precision, str):
        precision = rounding_of(precision, problem.z_s.device)
    wanted = problem.float64()
    bounds = [error_bound(problem, rounding) for rounding in (precision, ROUNDING["float64"])]
    losses = sum(loss for bound in bounds for loss, _ in bound)
    right = ((found[0].double() - wanted[0]).abs() <= losses).all()
    for view in (0, 1):
        error = (found[1 + view].double() - wanted[1 + view]).norm(dim=1)
        right &= (error <= sum(bound[view][1] for bound in bounds)).all()
    return bool(right)
