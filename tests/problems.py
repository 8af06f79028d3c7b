"""Inputs for the tests, and how far a correct computation may be from float64."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rrd_kernels import reference


@dataclass
class Problem:
    z_s: Tensor
    z_t: Tensor
    memory: Tensor
    tau_s: float = 0.1
    tau_t: float = 0.02

    def float64(self) -> tuple[Tensor, Tensor]:
        """The reference's [B] losses and [B, D] gradients of their sum."""
        z_s = self.z_s.detach().double().requires_grad_()
        loss = reference.relational_loss(
            z_s,
            self.z_t.double(),
            self.memory.double(),
            tau_s=self.tau_s,
            tau_t=self.tau_t,
            reduction="none",
        )
        (grad,) = torch.autograd.grad(loss.sum(), z_s)
        return loss.detach(), grad


def draw(
    batch: int,
    dim: int,
    rows: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_dtype: torch.dtype | None = None,
    **temperatures: float,
) -> Problem:
    """Embeddings of any length, and a memory of unit rows."""
    z_s, z_t = torch.randn(2, batch, dim, dtype=torch.float64)
    memory = F.normalize(torch.randn(rows, dim, dtype=torch.float64), dim=1)
    return Problem(
        z_s.to(device, dtype),
        z_t.to(device, dtype),
        memory.to(device, memory_dtype or dtype),
        **temperatures,
    )


@dataclass
class Rounding:
    """Unit roundoffs of the products' operands, of sums, and of a probability as used."""

    operand: float
    sum: float
    probability: float


# bfloat16: the probability is a cubic (7.5e-5) rounded to 8 bits; else exp2 to a few roundoffs.
ROUNDING = {
    "float64": Rounding(2.0**-53, 2.0**-53, 2.0**-50),
    "float32": Rounding(2.0**-24, 2.0**-24, 2.0**-21),
    "bfloat16": Rounding(2.0**-9, 2.0**-24, 2.0**-9 + 7.5e-5),
}


def tolerance(problem: Problem, precision: str) -> tuple[Tensor, Tensor]:
    """How far losses [B] and gradient rows' norms [B] may be from float64, which errs too."""
    ours = error_bound(problem, ROUNDING[precision])
    oracle = error_bound(problem, ROUNDING["float64"])
    return ours[0] + oracle[0], ours[1] + oracle[1]


def error_bound(problem: Problem, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """First-order bounds on the error of each loss [B] and of each gradient row's norm [B].

    Each product in s.m has relative error 2 * operand and the sum over D adds D * sum, so a logit
    is off by at most `eta`; a softmax probability then by the factor exp(2 * eta), by its own
    rounding, and by that of the sum over K (in tiles: about 64 + K / 32 additions in a row).
    """
    z_s, z_t, rows = problem.z_s.double(), problem.z_t.double(), problem.memory.double()
    student, teacher = F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)
    size, dim = rows.shape
    per_product = 2 * rounding.operand + (dim + 4) * rounding.sum

    def side(unit: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        logits = unit @ rows.T / tau
        eta = per_product * (unit.abs() @ rows.abs().T / tau).amax(1)
        summing = (64 + size / 32) * rounding.sum
        return logits, eta, torch.expm1(2 * eta) + 2 * rounding.probability + summing

    b, eta_s, rho_s = side(student, problem.tau_s)
    a, _, rho_t = side(teacher, problem.tau_t)
    q, p = b.softmax(1), a.softmax(1)

    centre = (p * b).sum(1, keepdim=True)
    largest = b.abs().amax(1)
    loss = 2 * eta_s + rho_t * (p * (b - centre).abs()).sum(1)
    loss += 2 * rounding.probability + rounding.probability * largest
    loss += 8 * rounding.sum * (largest + b.logsumexp(1).abs())

    def output(weights: Tensor, rho: Tensor) -> Tensor:
        mean = weights @ rows
        spread = (weights * torch.cdist(mean, rows)).sum(1)
        longest = rows.norm(dim=1).max()
        return rho * spread + (rounding.probability + (dim + 8) * rounding.sum) * longest

    length = z_s.norm(dim=1).clamp_min(1e-12)
    grad = 2 * (output(q, rho_s) + output(p, rho_t)) / problem.tau_s / length
    return loss, grad
