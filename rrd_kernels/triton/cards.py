"""Every card that the kernels know: how it is recognised, and its block sizes.

To add a card, give it a family in :func:`family_of` or :func:`family_of_capability` and an entry in
:data:`FAMILIES`. The sizes here are the largest that compile without a spilled register, within the
family's shared memory, with the oldest supported Triton and with the newest; ``make kernels``
prints what the compiler makes of each.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch

Blocks = TypeVar("Blocks")


class Config(NamedTuple):
    """Block sizes of a kernel that multiplies tiles of the memory."""

    block_m: int  # queries; samples where a kernel takes both queries of each
    block_n: int  # memory rows of a tile
    block_k: int  # elements of a row that are multiplied at a time
    block_d: int  # elements of the output that one program has, at least block_k
    num_warps: int
    num_stages: int
    programs: int = 1  # that a multiprocessor is to hold at a time


#: A row of D elements is looked up under the first that holds it.
WIDTHS = (64, 128, 256, 1024)

#: The widest rows that the kernels hold.
MAX_DIM = WIDTHS[-1]

#: The most memory rows, whose numbers the kernels count in 32 bits.
MAX_ROWS = 2**31 - 2**16

#: 2·B·K from which a problem is large, with blocks for the tensor cores' rate rather than for many
#: multiprocessors.
LARGE = 2**25


class Family(NamedTuple):
    """Cards with the same block sizes. These are given by the format of the products' operands, as
    :func:`operand_class` names it, and by the width of a row, one of :data:`WIDTHS`."""

    #: Of the kernel for loss and gradient: for a small problem, and for a large one.
    attention: dict[str, dict[int, tuple[Config, Config]]]
    #: Of the kernel for the loss alone, which does not use ``block_d``.
    loss_only: dict[str, dict[int, Config]]
    #: Of the momentum memory's kernels that multiply all rows.
    dense: dict[str, dict[int, Config]]
    #: Partial sums of a row's weights that a program keeps, so that each thread adds up its own.
    #: For float32 always one: its three products leave no register for more.
    partial_sums: int = 1
    #: Whether TF32 rows are multiplied in another order, at the width where the compiled code is
    #: better for it (docs/decisions.md).
    reorders_tf32: bool = False
    #: Triton's name for how float32 operands are multiplied: NVIDIA's tensor cores take three
    #: products of TensorFloat-32.
    float32_products: str = "tf32x3"


AMPERE = Family(
    attention={
        "half": {
            64: (Config(64, 64, 64, 64, 4, 3), Config(128, 128, 64, 64, 8, 3)),
            128: (Config(64, 64, 128, 128, 4, 3), Config(128, 64, 128, 128, 8, 3)),
            256: (Config(64, 64, 256, 256, 8, 2), Config(64, 64, 256, 256, 8, 2)),
            1024: (Config(64, 64, 64, 128, 4, 2), Config(128, 64, 64, 128, 8, 2)),
        },
        "tf32": {
            64: (Config(64, 32, 64, 64, 4, 2), Config(128, 64, 64, 64, 8, 2)),
            128: (Config(64, 32, 128, 128, 4, 2), Config(128, 32, 128, 128, 8, 2)),
            256: (Config(64, 32, 64, 256, 8, 2), Config(64, 32, 64, 256, 8, 2)),
            1024: (Config(64, 32, 32, 128, 4, 2), Config(64, 32, 32, 128, 4, 2)),
        },
        "float32": {
            64: (Config(64, 16, 64, 64, 4, 2), Config(128, 16, 64, 64, 8, 2)),
            128: (Config(64, 16, 32, 64, 4, 2), Config(64, 16, 32, 64, 4, 2)),
            256: (Config(64, 32, 32, 64, 4, 2), Config(64, 32, 32, 64, 4, 2)),
            1024: (Config(64, 32, 32, 64, 4, 2), Config(64, 32, 32, 64, 4, 2)),
        },
    },
    loss_only={
        "half": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 32, 128, 128, 4, 2),
            1024: Config(64, 32, 64, 64, 4, 2),
        },
        "tf32": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 32, 128, 128, 4, 2),
            256: Config(64, 32, 32, 32, 4, 2),
            1024: Config(64, 32, 32, 32, 4, 2),
        },
        "float32": {
            64: Config(64, 32, 64, 64, 4, 2),
            128: Config(32, 16, 32, 32, 4, 1),
            256: Config(32, 32, 32, 32, 4, 2),
            1024: Config(32, 32, 32, 32, 4, 2),
        },
    },
    dense={
        "half": {
            64: Config(64, 64, 64, 64, 8, 2),
            128: Config(64, 64, 128, 128, 8, 2),
            256: Config(64, 64, 64, 256, 8, 2),
            1024: Config(64, 64, 64, 256, 8, 2),
        },
        "tf32": {
            64: Config(64, 32, 64, 64, 8, 2),
            128: Config(64, 64, 32, 128, 8, 2),
            256: Config(64, 32, 64, 128, 8, 2),
            1024: Config(64, 32, 64, 128, 8, 2),
        },
        "float32": {
            64: Config(64, 32, 16, 64, 8, 2),
            128: Config(64, 32, 32, 128, 8, 2),
            256: Config(64, 32, 32, 128, 8, 2),
            1024: Config(64, 32, 32, 128, 8, 2),
        },
    },
    partial_sums=32,
)

HOPPER = Family(
    attention={
        "half": {
            64: (Config(64, 64, 64, 64, 4, 3), Config(128, 128, 64, 64, 8, 3)),
            128: (Config(64, 64, 128, 128, 4, 3), Config(128, 128, 128, 128, 8, 3)),
            256: (Config(64, 64, 128, 256, 4, 2), Config(128, 64, 256, 256, 8, 3)),
            1024: (Config(64, 64, 64, 128, 4, 2), Config(128, 64, 64, 256, 8, 2)),
        },
        "tf32": {
            64: (Config(64, 32, 64, 64, 4, 2), Config(128, 64, 64, 64, 8, 2)),
            128: (Config(64, 32, 128, 128, 4, 3), Config(128, 64, 128, 128, 8, 3)),
            256: (Config(64, 32, 64, 256, 8, 2), Config(128, 32, 32, 256, 8, 2)),
            1024: (Config(64, 32, 64, 128, 4, 2), Config(128, 32, 64, 128, 8, 2)),
        },
        "float32": {
            64: (Config(64, 32, 64, 64, 4, 2), Config(128, 64, 64, 64, 8, 2)),
            128: (Config(64, 32, 32, 128, 4, 2), Config(128, 32, 32, 128, 8, 2)),
            256: (Config(64, 32, 32, 128, 4, 2), Config(128, 32, 32, 128, 8, 2)),
            1024: (Config(64, 32, 32, 128, 4, 2), Config(128, 32, 32, 128, 8, 2)),
        },
    },
    loss_only={
        "half": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 64, 128, 128, 4, 2),
            1024: Config(64, 64, 128, 128, 4, 2),
        },
        "tf32": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 32, 64, 64, 4, 2),
            1024: Config(64, 32, 64, 64, 4, 2),
        },
        "float32": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 32, 128, 128, 4, 2),
            256: Config(64, 32, 32, 32, 4, 2),
            1024: Config(64, 32, 32, 32, 4, 2),
        },
    },
    dense={
        "half": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 64, 64, 256, 8, 2),
            1024: Config(64, 64, 64, 256, 8, 2),
        },
        "tf32": {
            64: Config(64, 64, 64, 64, 8, 2),
            128: Config(64, 64, 128, 128, 8, 2),
            256: Config(64, 32, 64, 128, 8, 2),
            1024: Config(64, 32, 64, 128, 8, 2),
        },
        "float32": {
            64: Config(64, 32, 64, 64, 8, 2),
            128: Config(64, 32, 32, 128, 8, 2),
            256: Config(64, 32, 32, 128, 8, 2),
            1024: Config(64, 32, 32, 128, 8, 2),
        },
    },
    partial_sums=16,
    reorders_tf32=True,
)

#: For cards that nobody has measured: the same for all widths, found for both at once.
UNMEASURED = Family(
    attention={
        "half": dict.fromkeys(WIDTHS, (Config(64, 64, 128, 128, 4, 2),) * 2),
        "tf32": dict.fromkeys(WIDTHS, (Config(64, 32, 32, 128, 4, 2),) * 2),
        "float32": dict.fromkeys(WIDTHS, (Config(64, 32, 32, 128, 4, 2),) * 2),
    },
    loss_only={
        "half": dict.fromkeys(WIDTHS, Config(64, 64, 128, 128, 4, 2)),
        "tf32": dict.fromkeys(WIDTHS, Config(64, 32, 64, 64, 4, 2)),
        "float32": dict.fromkeys(WIDTHS, Config(64, 32, 32, 32, 4, 2)),
    },
    dense={
        "half": dict.fromkeys(WIDTHS, Config(64, 64, 64, 128, 4, 2)),
        "tf32": dict.fromkeys(WIDTHS, Config(64, 32, 64, 128, 4, 2)),
        "float32": dict.fromkeys(WIDTHS, Config(64, 32, 16, 128, 8, 2)),
    },
)

FAMILIES = {
    "sm_80": AMPERE,
    "sm_86": AMPERE,  # fits what is newer too, and has less shared memory
    "sm_90": HOPPER,
    "sm_100": UNMEASURED,
    "gfx942": UNMEASURED._replace(float32_products="ieee"),  # AMD's matrix units have float32
}


class Hardware(NamedTuple):
    """What a plan depends on."""

    family: str  # a key of FAMILIES
    multiprocessors: int


def family_of(index: int | None) -> str | None:
    """The family of a GPU; ``None`` for one that is too old."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return "gfx942"  # 64 KiB of local memory, as all of AMD's
    roomy = properties.shared_memory_per_block_optin >= 163 * 1024
    return family_of_capability(properties.major, properties.minor, roomy)


def family_of_capability(major: int, minor: int, roomy: bool | None = None) -> str | None:
    """The family of NVIDIA's cards.

    Args:
        major, minor: the compute capability.
        roomy: whether a program may have 163 KiB of shared memory, if that is known.
    """
    if major < 8:
        return None
    if (major, minor) == (9, 0):
        return "sm_90"
    if major == 10:
        return "sm_100"
    if roomy is None:
        roomy = (major, minor) in ((8, 0), (8, 7))
    return "sm_80" if roomy else "sm_86"


@functools.cache
def arch_of(index: int) -> str:
    """The compute capability of a GPU, as compilers name it."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{10 * major + minor}"


@functools.lru_cache
def hardware_of(device: torch.device) -> Hardware:
    """What a GPU is planned for.

    Raises:
        RuntimeError: it is of no family.
    """
    family = family_of(device.index)
    if family is None:
        raise RuntimeError(f"rrd_kernels has no kernels for {torch.cuda.get_device_name(device)}")
    return Hardware(family, torch.cuda.get_device_properties(device).multi_processor_count)


def operand_class(precision: str, memory_bytes: int) -> str:
    """Under which a :class:`Family` has block sizes for products in ``precision``, out of a memory
    of ``memory_bytes`` an element: half precision that is float32 on its way takes as much room as
    TF32."""
    if precision in ("float16", "bfloat16"):
        return "half" if memory_bytes == 2 else "tf32"
    return precision


def look_up(
    blocks: Mapping[str, Mapping[int, Blocks]], precision: str, dim: int, memory_bytes: int
) -> Blocks:
    """What one of a family's tables has for rows of ``dim`` elements; see :func:`operand_class`."""
    width = next(width for width in WIDTHS if dim <= width)
    return blocks[operand_class(precision, memory_bytes)][width]


def input_precision(family: str, precision: str) -> str:
    """Triton's name for how float32 operands are multiplied; half precision ignores it."""
    if precision == "float32":
        return FAMILIES[family].float32_products
    return "tf32" if precision == "tf32" else "ieee"
