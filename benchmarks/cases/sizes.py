"""The sizes that are measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch


@dataclass(frozen=True)
class Case:
    """One size of the FIFO memory's step, B samples against K rows; defaults of protocol "2025"."""

    section: ClassVar[str] = "FIFO memory"
    batch: int
    rows: int
    format: str  # of the products' operands: a dtype's name or "tf32"
    dim: int = 128
    tau_s: float = 0.1
    tau_t: float = 0.02  # 0 is the hard target
    own_pair: bool = False
    divergence: str = "cross_entropy"
    enqueue: str = "before"
    newest_first: bool = False

    @property
    def name(self) -> str:
        """Unique among a device's cases."""
        width = "" if self.dim == 128 else f" D={self.dim}"
        return f"{self.format} {self.batch}×{self.rows}{width}"

    @property
    def trained(self) -> int:
        """How many of the embeddings have a gradient: z_s first."""
        return 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.format == "tf32" else getattr(torch, self.format)

    @property
    def hard(self) -> bool:
        return self.tau_t == 0

    @property
    def operations(self) -> int:
        """Of one-pass attention, two products for each of 2B queries, whatever is computed; for
        each of B with the hard target."""
        return (4 if self.hard else 8) * self.batch * self.dim * self.rows

    @property
    def bytes(self) -> int:
        """The least, with nothing in cache: memory, embeddings, gradient, enqueued rows."""
        return (self.rows + 4 * self.batch) * self.dim * self.dtype.itemsize

    def fields(self) -> dict[str, Any]:
        """What a record's rows say of their case."""
        named = {"section": self.section, "case": self.name, "format": self.format}
        sizes = {"B": self.batch, "K": self.rows, "D": self.dim}
        return named | sizes | {"operations": self.operations, "bytes": self.bytes}


@dataclass(frozen=True, kw_only=True)
class FamilyCase(Case):
    """The step of another method, with its published settings."""

    section = "relational family"
    method: str
    softmax: bool = True  # if not, the similarities themselves are the weights: products alone

    @property
    def name(self) -> str:
        return super().name.replace(self.format, self.method)

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"method": self.method}


@dataclass(frozen=True, kw_only=True)
class MomentumCase(Case):
    """One size of the momentum memory's step: each sample against itself and K drawn rows."""

    section = "momentum memory"
    n_data: int
    nce_t: float = 0.07
    nce_m: float = 0.5

    @property
    def name(self) -> str:
        return f"{self.format} momentum {self.batch}×{self.rows} of {self.n_data}"

    @property
    def memory_dtype(self) -> torch.dtype:
        return self.dtype

    @property
    def operations(self) -> int:
        """Of the drawn rows alone: a similarity to each view, and a product for the gradient."""
        return 6 * self.batch * (self.rows + 1) * self.dim

    @property
    def bytes(self) -> int:
        """Distinct drawn rows of both memories, indices, embeddings, gradients; rows that move."""
        drawn = self.n_data * (1 - (1 - (self.rows + 1) / self.n_data) ** self.batch)
        moved = 4 * self.batch if self.trained else 0
        rows = (2 * round(drawn) + moved) * self.memory_dtype.itemsize
        vectors = (2 + self.trained) * self.batch * self.dtype.itemsize
        return (rows + vectors) * self.dim + 8 * self.batch * (self.rows + 1)


@dataclass(frozen=True, kw_only=True)
class ContrastiveCase(MomentumCase):
    """One size of CRD's step, or of its loss alone: nothing has a gradient and no row moves."""

    section = "CRD"
    memory: str = "float32"  # the dtype of its rows
    loss_alone: bool = False

    @property
    def name(self) -> str:
        rows = "" if self.memory == self.format else f", {self.memory} rows"
        alone = ", loss alone" if self.loss_alone else ""
        return f"CRD {self.batch}×{self.rows} of {self.n_data}{rows}{alone}"

    @property
    def trained(self) -> int:
        return 0 if self.loss_alone else 2

    @property
    def memory_dtype(self) -> torch.dtype:
        return getattr(torch, self.memory)

    @property
    def operations(self) -> int:
        """Of the drawn rows: a similarity to each view, and as much again for its gradient."""
        return (4 if self.loss_alone else 8) * self.batch * (self.rows + 1) * self.dim


def _cases(format: str, *sizes: tuple[int, int], dim: int = 128) -> list[Case]:
    return [Case(*size, format, dim) for size in sizes]


def _published(
    method: str, rows: int, dim: int, tau_s: float, tau_t: float, **settings: Any
) -> FamilyCase:
    return FamilyCase(256, rows, "float32", dim, tau_s, tau_t, method=method, **settings)


SMALL, MIDDLE, LARGE, LARGEST = (64, 16384), (256, 16384), (1024, 65536), (4096, 262144)
WIDE = (256, 131072)  # of ReSSL and ISD, with D = 512
#: CIFAR-100 with the published K; and more rows than a batch wants of them.
MOMENTUM_CASES = (
    MomentumCase(*SMALL, "float32", n_data=50000),
    MomentumCase(64, 4096, "float32", n_data=400000),
)
CPU_CASES: tuple[Case, ...] = (
    *_cases("float32", SMALL, (256, 65536)),
    *_cases("bfloat16", SMALL, (256, 65536), (1024, 16384)),
    *_cases("float32", SMALL, dim=64),
    *_cases("float32", SMALL, WIDE, dim=512),
    *MOMENTUM_CASES,
)
#: Temperatures and sizes: the defaults of the published scripts, at B = 256.
FAMILY_CASES = (
    _published("MoCo", 65536, 128, 0.07, 0.0, own_pair=True, enqueue="after"),
    _published("SEED", 65536, 128, 0.2, 1e-4, own_pair=True, enqueue="after"),
    _published("ReSSL", 131072, 512, 0.1, 0.04, enqueue="after"),
    _published("ISD", 128000, 512, 0.02, 0.02, divergence="kl", enqueue="after"),
    _published("LightlyTrain", 8192, 768, 0.07, 0.07, divergence="kl", newest_first=True),
)
#: Of CIFAR-100 and of ImageNet, with CRD's K and with a quarter of it.
CONTRASTIVE_CASES = (
    ContrastiveCase(*SMALL, "float32", n_data=50000),
    ContrastiveCase(*SMALL, "float32", n_data=50000, memory="bfloat16"),
    ContrastiveCase(*SMALL, "float32", n_data=50000, loss_alone=True),
    ContrastiveCase(64, 4096, "float32", n_data=1280000),
)
#: Small enough that waiting for a thread without a core would show.
BUSY_CASES = (Case(64, 4096, "float32"), MomentumCase(64, 512, "float32", n_data=5000))
#: The most wanted first: time on a GPU may end before all have been measured.
CUDA_CASES: tuple[Case, ...] = (
    *_cases("bfloat16", SMALL, MIDDLE, LARGE, LARGEST, (8192, 65536)),
    *_cases("bfloat16", LARGE, LARGEST, dim=64),
    *_cases("bfloat16", LARGE, LARGEST, dim=256),
    *_cases("float32", SMALL, MIDDLE, LARGE),
    *_cases("tf32", SMALL, MIDDLE),
    *_cases("float16", LARGE),
    *_cases("float32", WIDE, dim=512),
    *_cases("bfloat16", WIDE, dim=512),
    *MOMENTUM_CASES,
)
#: Tiny, to show that all of it runs: their figures mean nothing.
QUICK_FAMILY = tuple(replace(case, batch=16, rows=512, dim=32) for case in FAMILY_CASES)
QUICK_CONTRASTIVE = tuple(
    replace(case, batch=8, rows=64, n_data=500) for case in CONTRASTIVE_CASES[:3]
)
QUICK_CASES: tuple[Case, ...] = (
    *(Case(16, 512, format) for format in ("float32", "bfloat16")),
    MomentumCase(8, 64, "float32", n_data=500),
)


def _axes(b: int, growing_k: Sequence[int], k: int, growing_b: Sequence[int]) -> dict[str, Any]:
    """By what grows, up to where the published code's B×K matrices do not fit, and what stays."""
    return {
        f"K, B = {b}": _cases("float32", *((b, rows) for rows in growing_k)),
        f"B, K = {k}": _cases("float32", *((batch, k) for batch in growing_b)),
    }


BATCHES = (32, 128, 512, 2048, 8192)
AXES = {
    "cpu": _axes(1024, (4096, 16384, 65536, 262144, 1048576), 16384, BATCHES),
    "cuda": _axes(8192, (16384, 65536, 262144, 1048576), 65536, BATCHES),
    "quick": _axes(16, (64, 256, 1024), 512, (4, 16, 64)),
}
CASES = {"cpu": CPU_CASES, "cuda": CUDA_CASES, "quick": QUICK_CASES}
FAMILY: dict[str, tuple[FamilyCase, ...]]
FAMILY = {"cpu": FAMILY_CASES, "cuda": (), "quick": QUICK_FAMILY}
CRD: dict[str, tuple[ContrastiveCase, ...]]
CRD = {"cpu": CONTRASTIVE_CASES, "cuda": (), "quick": QUICK_CONTRASTIVE}
