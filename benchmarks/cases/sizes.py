"""The sizes that are measured."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch


@dataclass(frozen=True)
class Case:
    """One size of the FIFO memory's step: a batch of B samples against K rows.

    The defaults are those of protocol "2025". ``matmul_precision`` is what
    torch.set_float32_matmul_precision is told.
    """

    section: ClassVar[str] = "FIFO memory"

    batch: int
    rows: int
    dtype_name: str
    dim: int = 128
    tau_s: float = 0.1
    tau_t: float = 0.02
    matmul_precision: str = "highest"

    @property
    def name(self) -> str:
        """Tells it from all others of a device."""
        width = "" if self.dim == 128 else f" D={self.dim}"
        return f"{self.format} {self.batch}×{self.rows}{width}"

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype_name)

    @property
    def format(self) -> str:
        """What the products' operands are rounded to: a dtype's name or ``"tf32"``."""
        tf32 = self.dtype_name == "float32" and self.matmul_precision == "high"
        return "tf32" if tf32 else self.dtype_name

    @property
    def operations(self) -> int:
        """By which all implementations are counted: loss and gradient as one-pass attention, two
        products for each of 2B queries. With B×K matrices three products do, 6·B·D·K."""
        return 8 * self.batch * self.dim * self.rows

    @property
    def bytes(self) -> int:
        """The least that is read and written with nothing in cache: the memory once, both
        embeddings, the gradient, and the rows that are enqueued."""
        return (self.rows + 4 * self.batch) * self.dim * self.dtype.itemsize

    def fields(self) -> dict[str, Any]:
        """What a record's rows say of their case."""
        sizes = {"B": self.batch, "K": self.rows, "D": self.dim, "format": self.format}
        bounds = {"operations": self.operations, "bytes": self.bytes}
        return {"section": self.section, "case": self.name, **sizes, **bounds}


@dataclass(frozen=True, kw_only=True)
class MomentumCase(Case):
    """One size of the momentum memory's step, each sample against itself and K drawn rows of
    ``n_data``."""

    section = "momentum memory"

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
        drawn = self.n_data * (1 - (1 - (self.rows + 1) / self.n_data) ** self.batch)
        vectors = 2 * round(drawn) + (3 + 4) * self.batch
        return vectors * self.dim * self.dtype.itemsize + 8 * self.batch * (self.rows + 1)


class Axis(NamedTuple):
    """K (``"rows"``) or B (``"batch"``) of a case, which grows while the rest stays."""

    name: str
    case: Case
    values: tuple[int, ...]

    @property
    def cases(self) -> list[Case]:
        if self.name == "rows":
            return [replace(self.case, rows=value) for value in self.values]
        return [replace(self.case, batch=value) for value in self.values]

    @property
    def label(self) -> str:
        """What grows, and what stays."""
        rows = self.name == "rows"
        return f"K, B = {self.case.batch}" if rows else f"B, K = {self.case.rows}"


def powers_of_4(first: int, last: int) -> tuple[int, ...]:
    """Between 2^first and 2^last."""
    return tuple(2**exponent for exponent in range(first, last + 1, 2))


#: Sizes of CIFAR-100 with the published K; and more rows than a batch wants of them.
MOMENTUM_CASES = (
    MomentumCase(64, 16384, "float32", n_data=50000),
    MomentumCase(64, 4096, "float32", n_data=400000),
)
#: The size of ReSSL and ISD.
WIDE = Case(256, 131072, "float32", dim=512)

CPU_CASES: tuple[Case, ...] = (
    Case(64, 16384, "float32"),
    Case(256, 65536, "float32"),
    Case(64, 16384, "bfloat16"),
    Case(256, 65536, "bfloat16"),
    Case(1024, 16384, "bfloat16"),
    Case(64, 16384, "float32", dim=64),
    Case(64, 16384, "float32", dim=512),
    WIDE,
    *MOMENTUM_CASES,
)

#: What is wanted most comes first: time on a GPU may end before all have been measured.
CUDA_CASES: tuple[Case, ...] = (
    Case(64, 16384, "bfloat16"),
    Case(256, 16384, "bfloat16"),
    Case(1024, 65536, "bfloat16"),
    Case(4096, 262144, "bfloat16"),
    Case(8192, 65536, "bfloat16"),
    *(Case(1024, 65536, "bfloat16", dim=dim) for dim in (64, 256)),
    *(Case(4096, 262144, "bfloat16", dim=dim) for dim in (64, 256)),
    Case(64, 16384, "float32"),
    Case(256, 16384, "float32"),
    Case(1024, 65536, "float32"),
    Case(64, 16384, "float32", matmul_precision="high"),
    Case(256, 16384, "float32", matmul_precision="high"),
    Case(1024, 65536, "float16"),
    WIDE,
    replace(WIDE, dtype_name="bfloat16"),
    *MOMENTUM_CASES,
)

#: Sizes so small that their figures mean nothing: they show that all of it runs.
QUICK_CASES: tuple[Case, ...] = (
    Case(16, 512, "float32"),
    Case(16, 512, "bfloat16"),
    MomentumCase(8, 64, "float32", n_data=500),
)

#: The other number is such that the published code's B×K matrices outgrow the machine's memory.
CPU_AXES = (
    Axis("rows", Case(1024, 0, "float32"), powers_of_4(12, 20)),
    Axis("batch", Case(0, 16384, "float32"), powers_of_4(5, 13)),
)
#: A memory holds a batch: the smallest K is as large as B.
CUDA_AXES = (
    Axis("rows", Case(8192, 0, "float32"), powers_of_4(14, 20)),
    Axis("batch", Case(0, 65536, "float32"), powers_of_4(5, 13)),
)
QUICK_AXES = (
    Axis("rows", Case(16, 0, "float32"), powers_of_4(6, 10)),
    Axis("batch", Case(0, 512, "float32"), powers_of_4(2, 6)),
)


def cases_for(device: torch.device, quick: bool = False) -> tuple[Case, ...]:
    if quick:
        return QUICK_CASES
    return CPU_CASES if device.type == "cpu" else CUDA_CASES


def axes_for(device: torch.device, quick: bool = False) -> tuple[Axis, ...]:
    if quick:
        return QUICK_AXES
    return CPU_AXES if device.type == "cpu" else CUDA_AXES
