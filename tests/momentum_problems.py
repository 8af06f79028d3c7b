"""Inputs for the tests of the momentum memory, and how far a result may be from float64."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from problems import ROUNDING, Rounding, in_float64, rounding_of
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.functional import sampled_relational_loss

METHODS = ["dense", "gather"]
SIMILARITIES = ["exponential", "cosine"]


@dataclass
class Sampled:
    z_s: Tensor
    z_t: Tensor
    memory_v1: Tensor
    memory_v2: Tensor
    contrast_idx: Tensor
    normalizers: Tensor | None
    tau_s: float = 0.1
    tau_t: float = 0.02
    nce_t: float = 0.07

    def call(self, function, **options) -> Tensor:
        return function(
            self.z_s,
            self.z_t,
            self.memory_v1,
            self.memory_v2,
            self.contrast_idx,
            self.normalizers,
            tau_s=self.tau_s,
            tau_t=self.tau_t,
            nce_t=self.nce_t,
            **options,
        )

    def results(self, **options) -> tuple[Tensor, Tensor]:
        """[B] losses and [B, D] gradients of their sum, by the fused operator."""
        leaf = replace(self, z_s=self.z_s.detach().requires_grad_())
        loss = leaf.call(sampled_relational_loss, reduction="none", **options)
        (grad,) = torch.autograd.grad(loss.sum(), leaf.z_s)
        return loss.detach(), grad

    def double(self) -> "Sampled":
        names = ("z_s", "z_t", "memory_v1", "memory_v2", "normalizers")
        values = {name: getattr(self, name) for name in names}
        return replace(
            self, **{name: v if v is None else v.detach().double() for name, v in values.items()}
        )

    def float64(self) -> tuple[Tensor, Tensor]:
        """The same by the reference in float64."""
        leaf = self.double()
        leaf.z_s.requires_grad_()
        loss = leaf.call(reference.sampled_relational_loss, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), leaf.z_s)
        return loss.detach(), grad


def draw(
    batch: int,
    columns: int,
    rows: int,
    dim: int,
    similarity: str = "exponential",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_dtype: torch.dtype | None = None,
) -> Sampled:
    """Embeddings of any length, rows of norm about 1, normalizers as a first batch sets them."""
    z_s, z_t = torch.randn(2, batch, dim, dtype=torch.float64)
    memories = torch.randn(2, rows, dim, dtype=torch.float64) / dim**0.5
    memories = memories.to(device, memory_dtype or dtype)
    problem = Sampled(
        z_s.to(device, dtype),
        z_t.to(device, dtype),
        *memories,
        torch.randint(rows, (batch, columns)).to(device),
        None,
    )
    if similarity == "exponential":
        precise = torch.promote_types(dtype, torch.float32)
        problem.normalizers = torch.full((2,), -1.0, device=device, dtype=precise)
        in_float64(
            reference.estimate_normalizers_,
            problem.normalizers,
            *views(problem),
            nce_t=problem.nce_t,
        )
    return problem


def views(problem: Sampled) -> tuple[Tensor, ...]:
    """What every operator of the memory takes first."""
    return (
        problem.z_s,
        problem.z_t,
        problem.memory_v1,
        problem.memory_v2,
        problem.contrast_idx,
    )


def error_bound(problem: Sampled, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """First-order bounds on the error of each loss [B] and of each gradient row's norm [B].

    A similarity has, for each product, the relative error 2 * operand, and D * sum from the sum; so
    a logit is off by eta, through the exponential too. A probability is then off by the factor
    exp(2 * eta), by its own rounding and by that of the sum over P; a column's weight, which is
    (q - p) * slope, by those of q and p, and through the slope by eta again.
    """
    double = problem.double()
    student, teacher = F.normalize(double.z_s, dim=1), F.normalize(double.z_t, dim=1)
    columns, dim = problem.contrast_idx.shape[1], student.shape[1]
    per_product = 2 * rounding.operand + (dim + 4) * rounding.sum
    own = 2 * rounding.probability + rounding.summing(columns)

    def side(unit: Tensor, memory: Tensor, view: int, tau: float) -> tuple[Tensor, ...]:
        rows = memory[problem.contrast_idx]
        similarity = torch.einsum("bd,bpd->bp", unit, rows)
        eta = per_product * torch.einsum("bd,bpd->bp", unit.abs(), rows.abs())
        if problem.normalizers is None:
            return similarity / tau, eta / tau, rows
        logits = torch.exp(similarity / problem.nce_t) / double.normalizers[view] / tau
        # The exponential's own rounding, and that of its argument, which is up to |s.m| / T.
        argument = similarity.abs() / problem.nce_t * rounding.sum
        return logits, logits * (eta / problem.nce_t + argument + rounding.probability), rows

    b, eta_b, rows = side(student, double.memory_v2, 0, problem.tau_s)
    a, eta_a, _ = side(teacher, double.memory_v1, 1, problem.tau_t)
    q, p = b.softmax(1), a.softmax(1)
    rho_q = torch.expm1(2 * eta_b.amax(1)) + own
    rho_p = torch.expm1(2 * eta_a.amax(1)) + own

    centre = (p * b).sum(1, keepdim=True)
    largest = b.abs().amax(1)
    loss = 2 * eta_b.amax(1) + rho_p * (p * (b - centre).abs()).sum(1)
    loss += 2 * rounding.probability + own * largest
    loss += 8 * rounding.sum * (b.logsumexp(1).abs() + largest)

    if problem.normalizers is None:
        slope, slope_error = torch.full_like(b, 1 / problem.tau_s), 0.0
    else:
        slope, slope_error = b / problem.nce_t, (eta_b / b.abs().clamp_min(1e-300)).amax(1)
    length = rows.norm(dim=2)
    weight = (q - p).abs() * slope.abs() * length
    # Of the product with the rows: its operands' rounding, and the sums'.
    product = 2 * rounding.operand + rounding.probability + rounding.summing(columns)
    grad = rho_q * (q * slope.abs() * length).sum(1) + rho_p * (p * slope.abs() * length).sum(1)
    grad += (slope_error + product) * weight.sum(1)
    norm = double.z_s.norm(dim=1).clamp_min(1e-12)
    # What the projection takes away has been rounded too.
    return loss, 2 * (grad + (dim + 8) * rounding.sum * weight.sum(1)) / norm


def tolerance(problem: Sampled, precision: str | Rounding) -> tuple[Tensor, Tensor]:
    """How far losses [B] and gradient rows' norms [B] may be from float64, which errs too."""
    named = isinstance(precision, str)
    ours = error_bound(problem, rounding_of(precision, problem.z_s.device) if named else precision)
    oracle = error_bound(problem, ROUNDING["float64"])
    return ours[0] + oracle[0], ours[1] + oracle[1]


def within(problem: Sampled, found: tuple[Tensor, Tensor], precision: str | Rounding) -> bool:
    """Whether [B] losses and [B, D] gradients are right, in every sample."""
    (loss, grad), (wanted, wanted_grad) = found, problem.float64()
    loss_bound, grad_bound = tolerance(problem, precision)
    errors = (grad.double() - wanted_grad).norm(dim=1)
    return bool(
        ((loss.double() - wanted).abs() <= loss_bound).all() and (errors <= grad_bound).all()
    )


def batch_of(batch=10, device="cpu", dtype=torch.float32):
    """Inputs of a criterion with 12 and 20 features, 50 samples and 24 negatives."""
    f_s = torch.randn(batch, 12, device=device).to(dtype).requires_grad_()
    f_t = torch.randn(batch, 20, device=device).to(dtype)
    idx = torch.randperm(50)[:batch].to(device)
    contrast_idx = torch.randint(50, (batch, 25)).to(device)
    contrast_idx[:, 0] = idx
    return f_s, f_t, idx, contrast_idx


def same_state(a, b):
    """Whether two state_dicts hold the same bits."""
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
