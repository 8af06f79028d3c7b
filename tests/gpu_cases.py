"""Calls that show every kernel and block size a GPU has, with what float64 makes of each.

Data are drawn on the device, anew for each repetition: small batches, and about the fewest rows
that take a block size and several splits.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import contrastive_problems
import momentum_problems
import torch
import torch.nn.functional as F
from contrastive_problems import Contrastive
from momentum_problems import Sampled
from problems import FORMS, Problem, Rounding, in_float64
from torch import Tensor

from rrd_kernels import functional, reference

Results = Mapping[str, Tensor]

OPERANDS = ("bfloat16", "tf32", "float16", "float32")
#: The table's widths, and two that fill no block.
DIMS = (128, 64, 256, 1024, 100, 300)

#: How far a product may be off, relative to it: half precision rounds the queries, TF32 cuts both
#: operands off.
ROUNDING = {"float32": 2.0**-21, "tf32": 2.0**-9, "float16": 2.0**-11, "bfloat16": 2.0**-8}
#: A row's elements before they are stored, in float32: tests/test_enqueue.py.
ROW = 16 * 2.0**-23


class Case(Protocol):
    """One kind of call."""

    @property
    def name(self) -> str: ...

    def draw(self) -> Any:
        """New data."""

    def fused(self, drawn: Any) -> Results:
        """What this package makes of them; they stay as they are."""

    def exact(self, drawn: Any) -> Results:
        """What the float64 reference does."""

    def bounds(self, drawn: Any, exact: Results) -> Mapping[str, float]:
        """The largest ‖fused - exact‖ / ‖exact‖ that is right."""


def storage(precision: str) -> torch.dtype:
    return getattr(torch, precision, torch.float32)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda")


def unit_rows(count: int, dim: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(randn(count, dim), dim=1).to(dtype)


def with_gradient(losses: Tensor, z_s: Tensor) -> Results:
    if not losses.requires_grad:
        return {"loss": losses}
    (grad,) = torch.autograd.grad(losses.sum(), z_s)
    return {"loss": losses.detach(), "gradient": grad}


def of_similarities(precision: str, dim: int, tau_t: float) -> float:
    """A relative error of loss and gradient.

    A similarity's error is that of a logit, and so of a probability, times 1 / tau, and the
    teacher's temperature is the lower. It is the sum of errors of D products, which fall either way
    and whose squares are 1 / D together: granted are four standard deviations, at the most
    rounding / √3 each, and what weights and a gradient are rounded by. In float32 the sums err most
    and cut off: granted is what they would err by if all products erred alike.
    """
    rounding = ROUNDING[precision]
    if precision == "float32":
        return rounding / tau_t
    return 4 * rounding / math.sqrt(3 * dim) / tau_t + 2 * rounding


def stored_rows(dtype: torch.dtype) -> float:
    """How far rows may be off once they are stored; of float32 the rounding is within ROW."""
    return ROW + (torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0)


def of_problem(precision: str, problem: Problem) -> float:
    """The same for a form of the loss. A hard target has no temperature; KL has both sides' errors,
    and is smaller than what it is the difference of."""
    bound = of_similarities(precision, problem.z_s.shape[1], problem.tau_t or problem.tau_s)
    return 4 * bound if problem.divergence == "kl" else bound


def with_embeddings(memory: Tensor, batch: int, dtype: torch.dtype, form: str) -> Problem:
    """A problem of one of the FORMS. Student and teacher are so alike, and the teacher so warm,
    that an own pair has a share of both softmaxes and not all of one."""
    terms = FORMS[form]
    z_s, z_t = randn(2, batch, memory.shape[1])
    if terms.get("own_pair"):
        z_t, terms = 0.6 * z_s + 0.8 * z_t, {"tau_t": 0.1} | terms
    return Problem(z_s.to(dtype), z_t.to(dtype), memory, **terms)


def named(form: str) -> str:
    return f", {form}" if form != "cross-entropy" else ""


@dataclass(frozen=True)
class Loss:
    """relational_loss: losses and gradient, or losses alone."""

    precision: str
    dim: int
    batch: int
    rows: int
    unit: bool
    need_grad: bool = True
    stored: torch.dtype | None = None  # of the memory, if not the precision's
    form: str = "cross-entropy"  # in FORMS

    @property
    def name(self) -> str:
        size = f"{self.precision} D={self.dim} {self.batch}×{self.rows}"
        alone = "" if self.need_grad else ", loss alone"
        stored = f", memory {self.stored}".replace("torch.", "") if self.stored else ""
        return f"{size} {'bounded' if self.unit else 'online'}{alone}{stored}{named(self.form)}"

    def draw(self) -> Problem:
        dtype = storage(self.precision)
        rows = unit_rows(self.rows, self.dim, self.stored or dtype)
        return with_embeddings(rows, self.batch, dtype, self.form)

    def fused(self, drawn: Problem) -> Results:
        z_s = drawn.z_s.detach().requires_grad_(self.need_grad)
        losses = functional.relational_loss(
            z_s,
            drawn.z_t,
            drawn.memory,
            **drawn.terms,
            reduction="none",
            unit_memory=self.unit,
            precision=self.precision,
            backend="fused",
        )
        return with_gradient(losses, z_s)

    def exact(self, drawn: Problem) -> Results:
        losses, grad = drawn.float64()
        return {"loss": losses, "gradient": grad}

    def bounds(self, drawn: Problem, exact: Results) -> Mapping[str, float]:
        return dict.fromkeys(exact, of_problem(self.precision, drawn))


@dataclass(frozen=True)
class Partials:
    """relational_partials, as the losses and the gradient that they make."""

    precision: str
    dim: int
    batch: int
    rows: int
    unit: bool
    need_grad: bool = True
    form: str = "cross-entropy"

    @property
    def name(self) -> str:
        return f"partial sums: {self._loss.name}"

    @property
    def _loss(self) -> Loss:
        size = self.dim, self.batch, self.rows
        return Loss(self.precision, *size, self.unit, self.need_grad, form=self.form)

    def draw(self) -> Problem:
        return self._loss.draw()

    def fused(self, drawn: Problem) -> Results:
        sums, shifts = functional.relational_partials(
            drawn.z_s,
            drawn.z_t,
            drawn.memory,
            tau_s=drawn.tau_s,
            tau_t=drawn.tau_t,
            divergence=drawn.divergence,
            need_grad=self.need_grad,
            unit_memory=self.unit,
            precision=self.precision,
            backend="fused",
        )
        losses, grad = reference.losses_of_partials(
            drawn.z_s,
            sums.double(),
            shifts.double(),
            self.need_grad,
            tau_s=drawn.tau_s,
            tau_t=drawn.tau_t,
            z_t=drawn.z_t if drawn.own_pair else None,
            divergence=drawn.divergence,
        )
        return {"loss": losses} if grad is None else {"loss": losses, "gradient": grad}

    def exact(self, drawn: Problem) -> Results:
        return self._loss.exact(drawn)

    def bounds(self, drawn: Problem, exact: Results) -> Mapping[str, float]:
        return self._loss.bounds(drawn, exact)


class Ring(NamedTuple):
    """A problem whose memory is written from ``pointer`` on, or up to it."""

    problem: Problem
    pointer: Tensor
    newest_first: bool

    def slots(self) -> Tensor:
        batch, size = len(self.problem.z_t), len(self.problem.memory)
        first = self.pointer - batch if self.newest_first else self.pointer
        return (first + torch.arange(batch, device="cuda")) % size

    def written(self, memory: Tensor, pointer: Tensor) -> Results:
        slots = self.slots()
        return {
            "written rows": memory[slots],
            "other rows": memory.index_fill(0, slots, 0),
            "pointer": pointer,
        }


def draw_ring(
    dim: int,
    batch: int,
    rows: int,
    dtype: torch.dtype,
    newest_first: bool,
    form: str = "cross-entropy",
) -> Ring:
    """So near to the end that the batch wraps."""
    away = torch.randint(1, batch, (1,), device="cuda")
    pointer = away if newest_first else rows - away
    problem = with_embeddings(unit_rows(rows, dim, dtype), batch, dtype, form)
    return Ring(problem, pointer, newest_first)


def of_writes(dtype: torch.dtype) -> Mapping[str, float]:
    return {"written rows": stored_rows(dtype), "other rows": 0.0, "pointer": 0.0}


@dataclass(frozen=True)
class Step:
    """relational_step_ over the wrap: mean loss, gradient, memory and pointer."""

    precision: str
    dim: int
    batch: int
    rows: int
    enqueue: str
    momentum: float = 0.0
    newest_first: bool = False
    form: str = "cross-entropy"

    @property
    def name(self) -> str:
        kind = f"enqueue {self.enqueue}" + (f", momentum {self.momentum}" if self.momentum else "")
        kind += (", newest first" if self.newest_first else "") + named(self.form)
        return f"step: {self.precision} D={self.dim} {self.batch}×{self.rows} {kind}"

    def draw(self) -> Ring:
        dtype = storage(self.precision)
        return draw_ring(self.dim, self.batch, self.rows, dtype, self.newest_first, self.form)

    def fused(self, drawn: Ring) -> Results:
        problem = drawn.problem
        z_s = problem.z_s.detach().requires_grad_()
        memory, pointer = problem.memory.clone(), drawn.pointer.clone()
        loss = functional.relational_step_(
            z_s,
            problem.z_t,
            memory,
            pointer,
            **problem.terms,
            enqueue=self.enqueue,
            newest_first=self.newest_first,
            momentum=self.momentum,
            unit_memory=True,
            precision=self.precision,
            backend="fused",
        )
        return {**with_gradient(loss, z_s), **drawn.written(memory, pointer)}

    def exact(self, drawn: Ring) -> Results:
        problem = drawn.problem
        memory, pointer = problem.memory.clone(), drawn.pointer.clone()
        options = {"newest_first": self.newest_first, "momentum": self.momentum}
        in_float64(reference.enqueue_, memory, pointer, problem.z_t, **options)
        seen = memory if self.enqueue == "before" else problem.memory
        losses, grad = replace(problem, memory=seen).float64()
        results = {"loss": losses.mean(), "gradient": grad / self.batch}
        return results | drawn.written(memory, pointer)

    def bounds(self, drawn: Ring, exact: Results) -> Mapping[str, float]:
        bound = of_problem(self.precision, drawn.problem)
        return {"loss": bound, "gradient": bound, **of_writes(drawn.problem.memory.dtype)}


@dataclass(frozen=True)
class Enqueue:
    """enqueue_ alone, over the wrap."""

    dtype: torch.dtype
    dim: int
    batch: int
    rows: int
    momentum: float
    newest_first: bool = False

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        order = ", newest first" if self.newest_first else ""
        size = f"D={self.dim} {self.batch}×{self.rows}"
        return f"enqueue: {dtype} {size} momentum {self.momentum}{order}"

    def draw(self) -> Ring:
        return draw_ring(self.dim, self.batch, self.rows, self.dtype, self.newest_first)

    @property
    def _options(self) -> dict[str, Any]:
        return {"newest_first": self.newest_first, "momentum": self.momentum}

    def fused(self, drawn: Ring) -> Results:
        memory, pointer = drawn.problem.memory.clone(), drawn.pointer.clone()
        keys = drawn.problem.z_t
        functional.enqueue_(memory, pointer, keys, **self._options, backend="fused")
        return drawn.written(memory, pointer)

    def exact(self, drawn: Ring) -> Results:
        memory, pointer = drawn.problem.memory.clone(), drawn.pointer.clone()
        in_float64(reference.enqueue_, memory, pointer, drawn.problem.z_t, **self._options)
        return drawn.written(memory, pointer)

    def bounds(self, drawn: Ring, exact: Results) -> Mapping[str, float]:
        return of_writes(self.dtype)


@dataclass(frozen=True)
class SampledLoss:
    """sampled_relational_loss by one method."""

    method: str
    similarity: str
    precision: str
    dim: int
    batch: int
    columns: int
    rows: int
    need_grad: bool = True

    @property
    def name(self) -> str:
        size = f"{self.batch}×{self.columns} of {self.rows}"
        alone = "" if self.need_grad else ", loss alone"
        return f"{self.method}: {self.precision} D={self.dim} {size} {self.similarity}{alone}"

    def draw(self) -> Sampled:
        dtype = storage(self.precision)
        z_s, z_t = randn(2, self.batch, self.dim).to(dtype)
        memories = (randn(2, self.rows, self.dim) / self.dim**0.5).to(dtype)
        contrast_idx = torch.randint(self.rows, (self.batch, self.columns), device="cuda")
        drawn = Sampled(z_s, z_t, *memories, contrast_idx, None)
        if self.similarity == "exponential":
            drawn.normalizers = torch.full((2,), -1.0, device="cuda")
            views = momentum_problems.views(drawn)
            in_float64(
                reference.estimate_normalizers_, drawn.normalizers, *views, nce_t=drawn.nce_t
            )
        return drawn

    def fused(self, drawn: Sampled) -> Results:
        leaf = replace(drawn, z_s=drawn.z_s.detach().requires_grad_(self.need_grad))
        losses = leaf.call(
            functional.sampled_relational_loss,
            reduction="none",
            precision=self.precision,
            method=self.method,
            backend="fused",
        )
        return with_gradient(losses, leaf.z_s)

    def exact(self, drawn: Sampled) -> Results:
        losses, grad = drawn.float64()
        return {"loss": losses, "gradient": grad}

    def bounds(self, drawn: Sampled, exact: Results) -> Mapping[str, float]:
        """Student's and teacher's probabilities nearly cancel where logits are small, so that their
        own rounding counts more than once."""
        own = momentum_problems.error_bound(drawn, Rounding(0, 0, ROUNDING["float32"], 0))
        return {
            name: of_similarities(self.precision, self.dim, drawn.tau_t)
            + (bound.norm() / exact[name].norm()).item()
            for name, bound in zip(("loss", "gradient"), own, strict=True)
        }


@dataclass(frozen=True)
class ContrastiveLoss:
    """sampled_contrastive_loss by one method: losses and both gradients, or losses alone."""

    method: str
    precision: str
    dim: int
    batch: int
    columns: int
    rows: int
    need_grad: bool = True

    @property
    def name(self) -> str:
        size = f"{self.batch}×{self.columns} of {self.rows}"
        alone = "" if self.need_grad else ", loss alone"
        return f"contrastive {self.method}: {self.precision} D={self.dim} {size}{alone}"

    def draw(self) -> Contrastive:
        shape = self.precision, self.dim, self.batch, self.columns, self.rows
        drawn = SampledLoss(self.method, "exponential", *shape).draw()
        assert drawn.normalizers is not None
        return Contrastive(*momentum_problems.views(drawn), drawn.normalizers)

    def _named(self, losses: Tensor, *gradients: Tensor) -> Results:
        names = ("student's gradient", "teacher's gradient")
        return {"loss": losses, **dict(zip(names, gradients, strict=False))}

    def fused(self, drawn: Contrastive) -> Results:
        options = {"precision": self.precision, "method": self.method, "backend": "fused"}
        if self.need_grad:
            return self._named(*drawn.results(**options))
        return self._named(drawn.call(reduction="none", **options))

    def exact(self, drawn: Contrastive) -> Results:
        return self._named(*drawn.float64()[: 3 if self.need_grad else 1])

    def bounds(self, drawn: Contrastive, exact: Results) -> Mapping[str, float]:
        """Each weight errs by about as much as its similarity over T, and by its own roundings."""
        rounding = Rounding(0, 0, ROUNDING["float32"], 0)
        student, teacher = contrastive_problems.error_bound(drawn, rounding)
        own = (student[0] + teacher[0], student[1], teacher[1])
        return {
            name: of_similarities(self.precision, self.dim, drawn.nce_t)
            + (bound.norm() / value.norm()).item()
            for (name, value), bound in zip(exact.items(), own, strict=False)
        }


@dataclass(frozen=True)
class Update:
    """momentum_update_ where some indices occur twice."""

    dtype: torch.dtype
    dim: int
    batch: int
    rows: int

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"update: {dtype} D={self.dim} {self.batch} of {self.rows}"

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(self.rows, (self.batch,), device="cuda")
        new = randn(self.batch, self.dim).to(self.dtype)
        return unit_rows(self.rows, self.dim, self.dtype), index, new

    def _written(self, memory: Tensor, index: Tensor) -> Results:
        return {"written rows": memory[index], "other rows": memory.index_fill(0, index, 0)}

    def fused(self, drawn: tuple[Tensor, Tensor, Tensor]) -> Results:
        memory, index, new = drawn
        memory = memory.clone()
        functional.momentum_update_(memory, index, new, backend="fused")
        return self._written(memory, index)

    def exact(self, drawn: tuple[Tensor, Tensor, Tensor]) -> Results:
        memory, index, new = drawn
        memory = memory.clone()
        in_float64(reference.momentum_update_, memory, index, new)
        return self._written(memory, index)

    def bounds(self, drawn: object, exact: Results) -> Mapping[str, float]:
        return {"written rows": stored_rows(self.dtype), "other rows": 0.0}


@dataclass(frozen=True)
class Normalizers:
    """estimate_normalizers_."""

    precision: str
    dim: int
    batch: int
    columns: int
    rows: int

    @property
    def name(self) -> str:
        size = f"{self.batch}×{self.columns} of {self.rows}"
        return f"normalizers: {self.precision} D={self.dim} {size}"

    def draw(self) -> Sampled:
        shape = (self.dim, self.batch, self.columns, self.rows)
        return SampledLoss("gather", "cosine", self.precision, *shape).draw()

    def _estimate(self, drawn: Sampled, estimate: Any, **options: Any) -> Results:
        found = torch.full((2,), -1.0, device="cuda")
        estimate(found, *momentum_problems.views(drawn), nce_t=drawn.nce_t, **options)
        return {"normalizers": found}

    def fused(self, drawn: Sampled) -> Results:
        return self._estimate(drawn, functional.estimate_normalizers_, backend="fused")

    def exact(self, drawn: Sampled) -> Results:
        return self._estimate(drawn, functools.partial(in_float64, reference.estimate_normalizers_))

    def bounds(self, drawn: object, exact: Results) -> Mapping[str, float]:
        # On a GPU both in float64, then rounded to float32, perhaps to two neighbours.
        return {"normalizers": 2.0**-23}


class Sizes(NamedTuple):
    """B and K of what the table calls small and large, and what is added to K for masks; B, P and
    rows of the momentum memory."""

    small: tuple[int, int] = (64, 2048)
    large: tuple[int, int] = (1024, 16384)
    odd: int = 5
    ring: tuple[int, int] = (48, 1000)
    sampled: tuple[int, int, int] = (32, 1025, 2048)


#: Sizes at which the small blocks are taken alone: that all of it runs.
QUICK = Sizes((8, 64), (16, 128), 5, (6, 40), (4, 33, 64))


#: Bounded or online, and full tiles or masks.
PATHS = tuple(itertools.product(("bounded", "online"), ("full", "masks")))
BOUNDED_FULL, BOUNDED_MASKS, ONLINE_FULL, ONLINE_MASKS = PATHS


def losses(precision: str, dim: int, sizes: Sizes, *, every: bool = False) -> Iterator[Loss]:
    """Of small and large blocks, and of the loss alone: every path at one of them, or all."""
    for size, need_grad, paths in (
        (sizes.large, True, (BOUNDED_FULL, BOUNDED_MASKS, ONLINE_FULL)),
        (sizes.small, True, (BOUNDED_FULL, ONLINE_MASKS)),
        (sizes.small, False, (BOUNDED_FULL, ONLINE_MASKS)),
    ):
        for softmax, tiles in PATHS if every else paths:
            batch, rows = size
            rows += sizes.odd if tiles == "masks" else 0
            yield Loss(precision, dim, batch, rows, softmax == "bounded", need_grad)


def first_cases(sizes: Sizes) -> Iterator[Case]:
    """What is wanted most: bfloat16 at D = 128, and a step."""
    yield from losses("bfloat16", 128, sizes, every=True)
    for enqueue, momentum in (("before", 0.0), ("after", 0.0), ("before", 0.5)):
        yield Step("bfloat16", 128, *sizes.ring, enqueue, momentum)


def further_cases(sizes: Sizes) -> Iterator[Case]:
    for dim, precision in itertools.product(DIMS, OPERANDS):
        if (precision, dim) != ("bfloat16", 128):
            yield from losses(precision, dim, sizes)
        if dim == 128:
            yield from _others(precision, sizes)
            yield from _forms(precision, sizes)
    few, dim = (5, 12), 1000  # one split, whose programs share a query or not
    for precision, width in itertools.product(("float32", "tf32"), (128, dim)):
        yield Loss(precision, width, *few, unit=True)
    for precision, stored in (("bfloat16", torch.float32), ("float32", torch.bfloat16)):
        for size in (sizes.small, sizes.large):
            yield Loss(precision, 128, *size, unit=True, stored=stored)
    batch, _, rows = sizes.sampled
    for dtype, width in itertools.product((torch.float32, torch.bfloat16), (128, dim)):
        momentum, newest_first = (0.0, False) if width == 128 else (0.5, True)
        yield Enqueue(dtype, width, *sizes.ring, momentum, newest_first)
        yield Update(dtype, width, batch, rows)
    yield Normalizers("float32", 128, *sizes.sampled)
    yield Normalizers("bfloat16", dim, *sizes.sampled)


def _others(precision: str, sizes: Sizes) -> Iterator[Case]:
    """Steps, partial sums and the momentum memory."""
    if precision != "bfloat16":
        yield Step(precision, 128, *sizes.ring, "before")
        yield Step(precision, 128, *sizes.ring, "after", 0.5)
    yield Partials(precision, 128, *sizes.small, unit=precision != "tf32")
    batch, columns, rows = sizes.sampled
    for dim in DIMS[:5]:
        yield SampledLoss("dense", "exponential", precision, dim, *sizes.sampled)
    yield SampledLoss("dense", "cosine", precision, 128, batch, columns, rows + sizes.odd)
    if precision in ("bfloat16", "float32"):
        yield SampledLoss("dense", "exponential", precision, 128, *sizes.sampled, need_grad=False)
    if precision == "float32":
        for dim in DIMS[:5]:
            yield SampledLoss("gather", "exponential", precision, dim, *sizes.sampled)
        yield SampledLoss("gather", "cosine", precision, 128, *sizes.sampled)
        yield SampledLoss("gather", "exponential", precision, 128, *sizes.sampled, need_grad=False)
    yield from _contrastive(precision, sizes)


def _contrastive(precision: str, sizes: Sizes) -> Iterator[Case]:
    batch, columns, rows = sizes.sampled
    methods = ("dense", "gather") if precision == "float32" else ("dense",)
    for method, dim in itertools.product(methods, DIMS[:5]):
        yield ContrastiveLoss(method, precision, dim, *sizes.sampled)
    yield ContrastiveLoss("dense", precision, 128, batch, columns, rows + sizes.odd)
    for method in methods if precision in ("bfloat16", "float32") else ():
        yield ContrastiveLoss(method, precision, 128, *sizes.sampled, need_grad=False)


def _forms(precision: str, sizes: Sizes) -> Iterator[Case]:
    """The other forms of the loss, and rows of more than 1024 elements."""
    for form, need_grad in itertools.product(("hard target", "own pair, kl"), (True, False)):
        unit = need_grad or precision != "bfloat16"
        yield Loss(precision, 128, *sizes.small, unit, need_grad, form=form)
    yield Loss(precision, 128, *sizes.large, unit=True, form="hard target")
    yield Loss(precision, 2048, *sizes.small, unit=True)
    if precision == "bfloat16":
        yield Loss(precision, 4000, *sizes.small, unit=False, form="own pair, kl")
        yield Step(precision, 128, *sizes.ring, "after", newest_first=True, form="hard target")
        yield Step(precision, 128, *sizes.ring, "before", newest_first=True, form="own pair")
        for form, need_grad in itertools.product(("hard target", "kl"), (True, False)):
            yield Partials(precision, 128, *sizes.small, True, need_grad, form)


#: What is also replayed in a graph and run on another stream and in threads.
def watched_cases(sizes: Sizes) -> Iterator[Case]:
    for precision in OPERANDS:
        yield Step(precision, 128, *sizes.ring, "before")
    yield Step("bfloat16", 128, *sizes.ring, "after", form="hard target")
    yield Step("float32", 128, *sizes.ring, "before", newest_first=True, form="kl")
    yield Loss("bfloat16", 128, *sizes.large, unit=True)
    for method in ("dense", "gather"):
        yield SampledLoss(method, "exponential", "float32", 128, *sizes.sampled)
        yield ContrastiveLoss(method, "float32", 128, *sizes.sampled)
