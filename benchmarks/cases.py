"""The sizes that are measured."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch


@dataclass(frozen=True)
class AnyCase:
    """What is common to all: a batch of B against K rows."""

    #: The heading under which a table shows it.
    section: ClassVar[str]

    batch: int
    rows: int

    @property
    @abstractmethod
    def name(self) -> str:
        """Tells it from all others of a device."""

    @property
    def format(self) -> str | None:
        """What the products' operands are rounded to, a dtype's name or ``"tf32"``, if any are."""
        return None

    @property
    def matmul_precision(self) -> str:
        """For float32 products: what torch.set_float32_matmul_precision is told."""
        return "highest"

    @property
    def operations(self) -> int | None:
        """What all implementations are counted by; draws have none."""
        return None

    @property
    @abstractmethod
    def bytes(self) -> int:
        """The least that any implementation reads and writes, with nothing in cache."""


@dataclass(frozen=True)
class Case(AnyCase):
    """One size of the FIFO memory's step; the defaults are those of protocol "2025"."""

    section = "FIFO memory"

    dtype_name: str
    dim: int = 128
    tau_s: float = 0.1
    tau_t: float = 0.02
    matmul_precision: str = "highest"

    @property
    def name(self) -> str:
        width = "" if self.dim == 128 else f" D={self.dim}"
        return f"{self.format} {self.batch}×{self.rows}{width}"

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype_name)

    @property
    def format(self) -> str:
        tf32 = self.dtype_name == "float32" and self.matmul_precision == "high"
        return "tf32" if tf32 else self.dtype_name

    @property
    def operations(self) -> int | None:
        """Loss and gradient as one-pass attention: two products for each of 2B queries. With B×K
        matrices three products do, 6·B·D·K."""
        return 8 * self.batch * self.dim * self.rows

    @property
    def bytes(self) -> int:
        """The memory once, both embeddings, the gradient, and the rows that are enqueued."""
        return (self.rows + 4 * self.batch) * self.dim * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class MomentumCase(Case):
    """One size of the momentum memory's step, each sample against itself and K drawn rows."""

    section = "momentum memory"

    #: Rows of each memory.
    n_data: int
    nce_t: float = 0.07
    nce_m: float = 0.5

    @property
    def name(self) -> str:
        return f"{self.format} momentum {self.batch}×{self.rows} of {self.n_data}"

    @property
    def operations(self) -> int:
        """Of the drawn rows alone: a similarity to each view, and a product for the gradient."""
        return 6 * self.batch * (self.rows + 1) * self.dim

    @property
    def bytes(self) -> int:
        """Each row that is drawn at all, of both memories, once; the indices; the embeddings and
        the gradient; and the rows that move, read and written in both memories."""
        vectors = 2 * round(self.drawn_rows) + (3 + 4) * self.batch
        return vectors * self.dim * self.dtype.itemsize + 8 * self.batch * (self.rows + 1)

    @property
    def drawn_rows(self) -> float:
        """Of one memory, on average over the draws."""
        return self.n_data * (1 - (1 - (self.rows + 1) / self.n_data) ** self.batch)


@dataclass(frozen=True)
class DrawCase(AnyCase):
    """One size of the draws that the momentum memory needs: K rows of other classes a sample."""

    section = MomentumCase.section

    n_data: int

    @property
    def name(self) -> str:
        return f"momentum negatives {self.batch}×{self.rows} of {self.n_data}"

    @property
    def bytes(self) -> int:
        """The indices that are returned."""
        return 8 * self.batch * (self.rows + 1)


@dataclass(frozen=True)
class Axis:
    """One number of a case that grows while the others stay.

    Args:
        name: ``"rows"``, K, or ``"batch"``, B.
        case: what stays.
        values: what it grows through, each larger than the one before.
    """

    name: str
    case: Case
    values: tuple[int, ...]

    @property
    def cases(self) -> list[Case]:
        changes: list[dict[str, Any]] = [{self.name: value} for value in self.values]
        return [replace(self.case, **change) for change in changes]


def _powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**exponent for exponent in range(first, last + 1))


#: Sizes of CIFAR-100 with the published K; and more rows than a batch wants of them.
MOMENTUM_CASES = (
    MomentumCase(64, 16384, "float32", n_data=50000),
    MomentumCase(64, 4096, "float32", n_data=400000),
)

CPU_CASES: tuple[AnyCase, ...] = (
    Case(64, 16384, "float32"),
    Case(256, 65536, "float32"),
    Case(64, 16384, "bfloat16"),
    Case(256, 65536, "bfloat16"),
    Case(1024, 16384, "bfloat16"),
    Case(64, 16384, "float32", dim=64),
    Case(64, 16384, "float32", dim=512),
    *MOMENTUM_CASES,
    DrawCase(64, 16384, 50000),
)

#: What is wanted most comes first: time on a GPU may end before all have been measured.
CUDA_CASES = (
    Case(64, 16384, "bfloat16"),
    Case(256, 16384, "bfloat16"),
    Case(1024, 65536, "bfloat16"),
    Case(4096, 262144, "bfloat16"),
    Case(8192, 65536, "bfloat16"),
    Case(1024, 65536, "bfloat16", dim=64),
    Case(4096, 262144, "bfloat16", dim=64),
    Case(1024, 65536, "bfloat16", dim=256),
    Case(4096, 262144, "bfloat16", dim=256),
    Case(64, 16384, "float32"),
    Case(256, 16384, "float32"),
    Case(1024, 65536, "float32"),
    Case(64, 16384, "float32", matmul_precision="high"),
    Case(256, 16384, "float32", matmul_precision="high"),
    Case(1024, 65536, "float16"),
    *MOMENTUM_CASES,
)


#: Sizes so small that their figures mean nothing: they show that all of it runs.
QUICK_CASES: tuple[AnyCase, ...] = (
    Case(16, 512, "float32"),
    Case(16, 512, "bfloat16"),
    MomentumCase(8, 64, "float32", n_data=500),
    DrawCase(8, 64, n_data=500),
)

#: The other number is such that the published code's B×K matrices outgrow the machine's memory.
CPU_AXES = (
    Axis("rows", Case(1024, 0, "float32"), _powers(12, 20)),
    Axis("batch", Case(0, 16384, "float32"), _powers(5, 13)),
)
#: A memory holds a batch: the smallest K is as large as B.
CUDA_AXES = (
    Axis("rows", Case(8192, 0, "float32"), _powers(13, 20)),
    Axis("batch", Case(0, 65536, "float32"), _powers(5, 13)),
)
QUICK_AXES = (
    Axis("rows", Case(16, 0, "float32"), _powers(7, 10)),
    Axis("batch", Case(0, 512, "float32"), _powers(3, 6)),
)


def cases_for(device: torch.device, quick: bool = False) -> tuple[AnyCase, ...]:
    if quick:
        return QUICK_CASES if device.type == "cpu" else QUICK_CASES[:-1]  # draws are the host's
    return CPU_CASES if device.type == "cpu" else CUDA_CASES


def axes_for(device: torch.device, quick: bool = False) -> tuple[Axis, ...]:
    if quick:
        return QUICK_AXES
    return CPU_AXES if device.type == "cpu" else CUDA_AXES


def from_fields(fields: Mapping[str, Any]) -> AnyCase:
    """The case whose fields these are, as a record has them."""
    if "n_data" not in fields:
        return Case(**fields)
    return MomentumCase(**fields) if "dtype_name" in fields else DrawCase(**fields)
