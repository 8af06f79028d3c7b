"""The sizes that are measured, and the tensors drawn for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: z_s and z_t, each [B, D].
Embeddings = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """One size of the step; the defaults are those of protocol "2025"."""

    batch: int
    rows: int
    dtype_name: str
    dim: int = 128
    tau_s: float = 0.1
    tau_t: float = 0.02
    #: For float32 products: what torch.set_float32_matmul_precision is told.
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
        """What the products' operands are rounded to, a dtype's name or ``"tf32"``."""
        tf32 = self.dtype_name == "float32" and self.matmul_precision == "high"
        return "tf32" if tf32 else self.dtype_name

    @property
    def operations(self) -> int:
        """Loss and gradient as attention: two products for each of 2B queries."""
        return 8 * self.batch * self.dim * self.rows


CPU_CASES = (
    Case(64, 16384, "float32"),
    Case(256, 65536, "float32"),
    Case(64, 16384, "bfloat16"),
    Case(256, 65536, "bfloat16"),
    Case(1024, 65536, "bfloat16"),
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
)


def cases_for(device: torch.device) -> tuple[Case, ...]:
    return CPU_CASES if device.type == "cpu" else CUDA_CASES


def draw(
    case: Case, device: torch.device, sets: int = 4, seed: int = 0
) -> tuple[Tensor, Sequence[Embeddings]]:
    """A memory of unit rows and ``sets`` batches of embeddings, as features of 100 classes.

    Without classes each teacher row would be alone with itself, its probability 1 on the slot that
    has just been written, and a wrong attention over the other rows would not show.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    centres = normal(100, case.dim)

    def features(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(centres), (count,), generator=generator, device=device)
        student = centres[labels] + normal(count, case.dim)
        teacher = centres[labels] + 0.3 * normal(count, case.dim)
        return student.to(case.dtype), teacher.to(case.dtype)

    memory = F.normalize(features(case.rows)[1].float(), dim=1).to(case.dtype)
    return memory, [features(case.batch) for _ in range(sets)]
