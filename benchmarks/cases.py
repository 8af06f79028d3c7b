"""The sizes that are measured."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
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
        """Of any implementation, where they can be counted alike."""
        return None


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
        """Loss and gradient as attention: two products for each of 2B queries."""
        return 8 * self.batch * self.dim * self.rows


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
    def operations(self) -> None:
        """Not alike: all rows can be multiplied, or those that were drawn."""


@dataclass(frozen=True)
class DrawCase(AnyCase):
    """One size of the draws that the momentum memory needs: K rows of other classes a sample."""

    section = MomentumCase.section

    n_data: int

    @property
    def name(self) -> str:
        return f"momentum negatives {self.batch}×{self.rows} of {self.n_data}"


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
    Case(1024, 65536, "bfloat16"),
    *MOMENTUM_CASES,
    DrawCase(64, 16384, 50000),
)

CUDA_CASES = (
    Case(64, 16384, "float32"),
    Case(256, 16384, "float32"),
    Case(1024, 65536, "float32"),
    Case(64, 16384, "float32", matmul_precision="high"),
    Case(256, 16384, "float32", matmul_precision="high"),
    Case(64, 16384, "bfloat16"),
    Case(256, 16384, "bfloat16"),
    Case(1024, 65536, "bfloat16"),
    Case(4096, 262144, "bfloat16"),
    Case(8192, 65536, "bfloat16"),
    Case(1024, 65536, "bfloat16", dim=64),
    Case(4096, 262144, "bfloat16", dim=64),
    Case(1024, 65536, "bfloat16", dim=256),
    Case(4096, 262144, "bfloat16", dim=256),
    Case(1024, 65536, "float16"),
    *MOMENTUM_CASES,
)


def cases_for(device: torch.device) -> tuple[AnyCase, ...]:
    return CPU_CASES if device.type == "cpu" else CUDA_CASES


def from_fields(fields: Mapping[str, Any]) -> AnyCase:
    """The case whose fields these are, as a record has them."""
    if "n_data" not in fields:
        return Case(**fields)
    return MomentumCase(**fields) if "dtype_name" in fields else DrawCase(**fields)
