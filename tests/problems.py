"""Inputs for the tests, and how far a correct computation may be from float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from emulated import EMULATED
from torch import Tensor

from rrd_kernels import reference
from rrd_kernels.functional import relational_loss, relational_step_


def step_on_a_copy(z_s: Tensor, z_t: Tensor, memory: Tensor, **options) -> Tensor:
    """relational_step_ where it must be relational_loss: what it writes comes after the loss."""
    with torch.no_grad():
        memory = memory.clone()
    ptr = torch.zeros(1, dtype=torch.int64, device=memory.device)
    return relational_step_(z_s, z_t, memory, ptr, enqueue="after", **options)


#: Both operators that have a derivative, as functions of the same arguments.
LOSSES = {"relational_loss": relational_loss, "relational_step_": step_on_a_copy}


def nearest_tf32(value: Tensor) -> Tensor:
    """Of ten mantissa bits; ties to even."""
    bits = value.float().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & -8192).view(torch.float32)


def rounded_query(query: Tensor, precision: str) -> Tensor:
    """To the products' operands, in float64."""
    rounded = nearest_tf32(query) if precision == "tf32" else query.to(getattr(torch, precision))
    return rounded.double()


def loaded(memory: Tensor, precision: str) -> Tensor:
    """Rows as they are multiplied, in float64: the hardware cuts off what TF32 has not."""
    if precision == "tf32":
        return (memory.float().contiguous().view(torch.int32) & -8192).view(torch.float32).double()
    return memory.to(getattr(torch, precision)).double()


def clear_of_ties(z: Tensor, precision: str, *taus: float) -> Tensor:
    """``z``, whose rows are drawn anew until no element of a query is as near to the middle of two
    numbers of the operands' format as float32 errs, and may be rounded to either."""
    while True:
        queries = [F.normalize(z.double(), dim=1) * (math.log2(math.e) / tau) for tau in taus]
        ends = [
            [rounded_query(q * (1 + side * 16 * 2.0**-24), precision) for side in (-1, 1)]
            for q in queries
        ]
        unclear = sum((low != high).any(dim=1) for low, high in ends) > 0
        if precision == "float32" or not unclear.any():
            return z
        z[unclear] = torch.randn(int(unclear.sum()), z.shape[1], dtype=torch.float64).to(z.dtype)


#: Each form of the loss, as arguments.
FORMS = {
    "cross-entropy": {},
    "own pair": {"own_pair": True},
    "hard target": {"own_pair": True, "tau_t": 0.0},
    "kl": {"divergence": "kl"},
    "own pair, kl": {"own_pair": True, "divergence": "kl"},
}


@dataclass
class Problem:
    z_s: Tensor
    z_t: Tensor
    memory: Tensor
    tau_s: float = 0.1
    tau_t: float = 0.02
    own_pair: bool = False
    divergence: str = "cross_entropy"

    @property
    def terms(self) -> dict[str, Any]:
        """The loss's arguments beside the tensors."""
        names = ("tau_s", "tau_t", "own_pair", "divergence")
        return {name: getattr(self, name) for name in names}

    def logits(self, query: Tensor, rows: Tensor, tau: float) -> Tensor:
        """Those of each sample's columns; its own pair, if it is one, comes first."""
        if not self.own_pair:
            return query @ rows.T / tau
        own = (query * F.normalize(self.z_t.double(), dim=1)).sum(1, keepdim=True)
        return torch.cat([own, query @ rows.T], 1) / tau

    def mean_column(self, weights: Tensor, rows: Tensor) -> Tensor:
        """The sum of each sample's columns times their weights, [B, D]."""
        if not self.own_pair:
            return weights @ rows
        return weights[:, 1:] @ rows + weights[:, :1] * F.normalize(self.z_t.double(), dim=1)

    def target(self, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits and probabilities. A hard target's logits are all zero, since they
        count for nothing."""
        if self.tau_t == 0:
            logits = torch.zeros_like(self.logits(query, rows, 1.0))
            first = torch.arange(logits.shape[1], device=logits.device) == 0
            return logits, first.to(logits).expand_as(logits)
        logits = self.logits(query, rows, self.tau_t)
        return logits, logits.softmax(1)

    def rounded_float64(self, precision: str) -> tuple[Tensor, Tensor]:
        """The same for products of ``precision``: queries rounded to it once they are scaled by
        log2(e) / tau, the memory cut off as the hardware does for TF32, float64 from there on. The
        loss as attention, with the derivative through the exact row."""
        rows, z_s = loaded(self.memory, precision), self.z_s.double()

        def query(z: Tensor, tau: float) -> Tensor:
            scale = math.log2(math.e) / tau
            return rounded_query(F.normalize(z.double(), dim=1) * scale, precision) / scale

        b = self.logits(query(z_s, self.tau_s), rows, self.tau_s)
        a, p = self.target(query(self.z_t, self.tau_t or 1.0), rows)
        loss = b.logsumexp(1) - (p * b).sum(1)
        if self.divergence == "kl" and self.tau_t != 0:
            loss += (p * a).sum(1) - a.logsumexp(1)
        grad = self.mean_column(b.softmax(1) - p, rows) / self.tau_s
        unit, norm = F.normalize(z_s, dim=1), z_s.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return loss, (grad - (grad * unit).sum(1, keepdim=True) * unit) / norm

    def float64(self) -> tuple[Tensor, Tensor]:
        """The reference's [B] losses and [B, D] gradients of their sum."""
        z_s = self.z_s.detach().double().requires_grad_()
        loss = reference.relational_loss(
            z_s,
            self.z_t.double(),
            self.memory.double(),
            reduction="none",
            **self.terms,
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
    **terms: Any,
) -> Problem:
    """Embeddings of any length, and a memory of unit rows."""
    z_s, z_t = torch.randn(2, batch, dim, dtype=torch.float64)
    memory = F.normalize(torch.randn(rows, dim, dtype=torch.float64), dim=1)
    return Problem(
        z_s.to(device, dtype),
        z_t.to(device, dtype),
        memory.to(device, memory_dtype or dtype),
        **terms,
    )


@dataclass
class Rounding:
    """Unit roundoffs of the products' operands, of sums, and of a probability as used; how many
    additions follow one another for each row of the memory, beyond the first 96; and after how many
    rows a new sum begins, which joins the others by one addition."""

    operand: float
    sum: float
    probability: float
    additions: float
    chunk: float = math.inf

    def summing(self, rows: int) -> float:
        """The relative error of a sum over the memory."""
        in_chunk = self.additions * min(rows, self.chunk)
        return (96 + in_chunk + rows / self.chunk) * self.sum


# bfloat16: the probability is a cubic (7.5e-5) rounded to 8 bits; else exp2 to a few roundoffs. Its
# operands are exact: the memory is bfloat16, and the queries' rounding is in rounded_float64. The
# matrix unit adds pairs of rows one after the other, the other kernels tiles of 48 to 96 rows.
ROUNDING = {
    "float64": Rounding(2.0**-53, 2.0**-53, 2.0**-50, 1 / 32, 3072),
    "float32": Rounding(2.0**-24, 2.0**-24, 2.0**-21, 1 / 32, 3072),
    "bfloat16": Rounding(2.0**-24, 2.0**-24, 2.0**-9 + 7.5e-5, 1 / 2),
}


# Triton's: float32 as three products of TensorFloat-32, whose omitted term is 2^-22 of each. Tensor
# cores cut off, rather than round, what they add to a float32 sum, every eight rows or sixteen.
TRITON_ROUNDING = {
    "float64": ROUNDING["float64"],
    "float32": Rounding(2.0**-21, 2.0**-23, 2.0**-21, 1 / 2),
    # Ten bits, the rest cut off, of memory and weights.
    "tf32": Rounding(2.0**-10, 2.0**-23, 2.0**-10 + 2.0**-21, 1 / 2),
    "bfloat16": Rounding(2.0**-24, 2.0**-23, 2.0**-9 + 2.0**-21, 1 / 2),
    "float16": Rounding(2.0**-24, 2.0**-23, 2.0**-12 + 2.0**-21, 1 / 2),
}


def runs_triton(device: torch.device) -> bool:
    return EMULATED or device.type == "cuda"


def rounding_of(precision: str, device: torch.device) -> Rounding:
    return (TRITON_ROUNDING if runs_triton(device) else ROUNDING)[precision]


def tolerance(problem: Problem, precision: str) -> tuple[Tensor, Tensor]:
    """How far losses [B] and gradient rows' norms [B] may be from float64, which errs too."""
    ours = error_bound(problem, rounding_of(precision, problem.z_s.device))
    oracle = error_bound(problem, ROUNDING["float64"])
    return ours[0] + oracle[0], ours[1] + oracle[1]


def in_float64(write: Callable[..., None], written: Tensor, *others: Any, **options: Any) -> None:
    """Calls one of the reference's writers on float64 copies, and rounds once into ``written``."""
    wide = written.double()
    floating = [isinstance(x, Tensor) and x.is_floating_point() for x in others]
    write(wide, *(x.double() if f else x for x, f in zip(others, floating, strict=True)), **options)
    written.copy_(wide)


def error_bound(problem: Problem, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """First-order bounds on the error of each loss [B] and of each gradient row's norm [B].

    Each product in s.m has relative error 2 * operand and the sum over D adds D * sum, so a logit
    is off by at most `eta`; a softmax probability then by the factor exp(2 * eta), by its own
    rounding, and by that of the sum over K.
    """
    z_s, z_t, rows = problem.z_s.double(), problem.z_t.double(), problem.memory.double()
    student, teacher = F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)
    size, dim = rows.shape
    per_product = 2 * rounding.operand + (dim + 4) * rounding.sum

    def side(unit: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        sizes = unit.abs() @ rows.abs().T
        if problem.own_pair:
            sizes = torch.cat([(unit * teacher).abs().sum(1, keepdim=True), sizes], 1)
        eta = per_product * sizes.amax(1) / tau
        own = 2 * rounding.probability + rounding.summing(size)
        return eta, torch.expm1(2 * eta) + own

    def log_of_sum(logits: Tensor, eta: Tensor) -> Tensor:
        """Of a log-sum-exp, and of the mean logit that is subtracted from it."""
        largest = logits.abs().amax(1)
        error = 2 * eta + 2 * rounding.probability + rounding.probability * largest
        error += 8 * rounding.sum * logits.logsumexp(1).abs()
        return error + (8 * rounding.sum + rounding.summing(size)) * largest

    b, (a, p) = problem.logits(student, rows, problem.tau_s), problem.target(teacher, rows)
    eta_s, rho_s = side(student, problem.tau_s)
    eta_t, rho_t = side(teacher, problem.tau_t or 1.0)
    if problem.tau_t == 0:
        rho_t = torch.zeros_like(rho_t)  # the target is exact
    kl = problem.divergence == "kl" and problem.tau_t != 0
    q, term = b.softmax(1), b - a if kl else b
    centre = (p * term).sum(1, keepdim=True)
    loss = log_of_sum(b, eta_s) + rho_t * (p * (term - centre).abs()).sum(1)
    if kl:
        loss += log_of_sum(a, eta_t)

    def output(weights: Tensor, rho: Tensor) -> Tensor:
        mean = problem.mean_column(weights, rows)
        distances, longest = torch.cdist(mean, rows), rows.norm(dim=1).max()
        if problem.own_pair:
            distances = torch.cat([(mean - teacher).norm(dim=1, keepdim=True), distances], 1)
            longest = longest.clamp_min(1.0)
        spread = (weights * distances).sum(1)
        return rho * spread + (rounding.probability + (dim + 8) * rounding.sum) * longest

    length = z_s.norm(dim=1).clamp_min(1e-12)
    grad = 2 * (output(q, rho_s) + output(p, rho_t)) / problem.tau_s / length
    return loss, grad
