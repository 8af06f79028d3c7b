"""The supported GPUs: how a card is recognised, and its block sizes.

CONTRIBUTING.md, "Adding a GPU", lists what a new card needs. A large problem has the largest sizes
that compile without a spilled register, within the family's shared memory, with the oldest and with
the newest supported Triton. ``make kernels`` prints the registers and the shared memory of each.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch

Blocks = TypeVar("Blocks")


class Config(NamedTuple):
    """Block sizes of a kernel that multiplies tiles of the memory."""

    block_m: int  # queries, or samples in kernels that take both queries of a sample
    block_n: int  # memory rows of a tile
    block_k: int  # elements of a row that one product takes at a time
    block_d: int  # output elements of one program, at least block_k
    num_warps: int
    num_stages: int
    programs: int = 1  # per multiprocessor at a time, for the choice of splits


#: Row widths of the tables. D elements use the smallest width that is at least D.
WIDTHS = (64, 128, 256, 1024, 4096)

#: The largest D of the kernels; wider rows run on the reference.
MAX_DIM = WIDTHS[-1]

#: The most memory rows: the kernels number rows in 32 bits.
MAX_ROWS = 2**31 - 2**16

#: Queries times rows, most often 2·B·K, from which a problem is large. A large problem's blocks are
#: chosen for the rate of the tensor cores, a small one's for many multiprocessors.
LARGE = 2**25


class Family(NamedTuple):
    """Cards with the same block sizes. The tables' keys are the class of the products' operands
    (see :func:`operand_class`), then the row width (one of :data:`WIDTHS`)."""

    #: The kernel for loss and gradient: sizes for a small problem and for a large one.
    attention: dict[str, dict[int, tuple[Config, Config]]]
    #: The kernel for the loss alone. It does not use ``block_d``.
    loss_only: dict[str, dict[int, Config]]
    #: The momentum memory's dense kernels, which multiply all rows.
    dense: dict[str, dict[int, Config]]
    #: Sums of weights that a program keeps for each query: column j of a tile is added to sum
    #: j % sums_per_query. All columns of a sum are in one thread, so threads exchange nothing in
    #: the loop. float32 always keeps one: its three products leave no register for more.
    sums_per_query: int = 1
    #: Whether TF32 weights are multiplied by reordered rows, which saves instructions. Only at D
    #: from 65 to 128 (docs/decisions.md, "TF32 on Hopper takes a tile twice").
    reorders_tf32: bool = False
    #: Triton's ``input_precision`` for float32 operands. On NVIDIA's tensor cores: three products
    #: of TensorFloat-32.
    float32_products: str = "tf32x3"
    #: By operand class and row width: where the loss alone of a hard target would spill, or not fit
    #: into shared memory, with one more stage than ``loss_only`` has.
    hard_alone: Mapping[tuple[str, int], Config] = MappingProxyType({})


AMPERE = Family(
    attention={
        "half": {
            64: (Config(64, 64, 64, 64, 4, 3), Config(128, 128, 64, 64, 8, 3)),
            128: (Config(64, 64, 128, 128, 4, 3), Config(128, 64, 128, 128, 8, 3)),
            256: (Config(64, 64, 256, 256, 8, 2), Config(64, 64, 256, 256, 8, 2)),
            1024: (Config(64, 64, 64, 128, 4, 2), Config(128, 64, 64, 128, 8, 2)),
            4096: (Config(64, 32, 64, 512, 8, 2),) * 2,
        },
        "tf32": {
            64: (Config(64, 32, 64, 64, 4, 2), Config(128, 64, 64, 64, 8, 2)),
            128: (Config(64, 32, 128, 128, 4, 2), Config(128, 32, 128, 128, 8, 2)),
            256: (Config(64, 32, 64, 256, 8, 2), Config(64, 32, 64, 256, 8, 2)),
            1024: (Config(64, 32, 32, 128, 4, 2), Config(64, 32, 32, 128, 4, 2)),
            4096: (Config(64, 16, 64, 512, 8, 2),) * 2,
        },
        "float32": {
            64: (Config(64, 16, 64, 64, 4, 2), Config(128, 16, 64, 64, 8, 2)),
            128: (Config(64, 16, 32, 64, 4, 2), Config(64, 16, 32, 64, 4, 2)),
            256: (Config(64, 32, 32, 64, 4, 2), Config(64, 32, 32, 64, 4, 2)),
            1024: (Config(64, 32, 32, 64, 4, 2), Config(64, 32, 32, 64, 4, 2)),
            4096: (Config(64, 16, 32, 256, 8, 2),) * 2,
        },
    },
    loss_only={
        "half": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 32, 128, 128, 4, 2),
            1024: Config(64, 32, 64, 64, 4, 2),
            4096: Config(64, 32, 64, 64, 4, 2),
        },
        "tf32": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 32, 128, 128, 4, 2),
            256: Config(64, 32, 32, 32, 4, 2),
            1024: Config(64, 32, 32, 32, 4, 2),
            4096: Config(64, 32, 32, 32, 4, 2),
        },
        "float32": {
            64: Config(64, 32, 64, 64, 4, 2),
            128: Config(32, 16, 32, 32, 4, 1),
            256: Config(32, 32, 32, 32, 4, 2),
            1024: Config(32, 32, 32, 32, 4, 2),
            4096: Config(32, 32, 32, 32, 4, 2),
        },
    },
    dense={
        "half": {
            64: Config(64, 64, 64, 64, 8, 2),
            128: Config(64, 64, 128, 128, 8, 2),
            256: Config(64, 64, 64, 256, 8, 2),
            1024: Config(64, 64, 64, 256, 8, 2),
            4096: Config(64, 64, 64, 256, 8, 2),
        },
        "tf32": {
            64: Config(64, 32, 64, 64, 8, 2),
            128: Config(64, 64, 32, 128, 8, 2),
            256: Config(64, 32, 64, 128, 8, 2),
            1024: Config(64, 32, 64, 128, 8, 2),
            4096: Config(64, 32, 64, 128, 8, 2),
        },
        "float32": {
            64: Config(64, 32, 16, 64, 8, 2),
            128: Config(64, 32, 32, 128, 8, 2),
            256: Config(64, 32, 32, 128, 8, 2),
            1024: Config(64, 32, 32, 128, 8, 2),
            4096: Config(64, 32, 32, 128, 8, 2),
        },
    },
    sums_per_query=32,
    hard_alone=dict.fromkeys((("half", 1024), ("half", 4096)), Config(64, 32, 32, 32, 4, 2)),
)

HOPPER = Family(
    attention={
        "half": {
            64: (Config(64, 64, 64, 64, 4, 3), Config(128, 128, 64, 64, 8, 3)),
            128: (Config(64, 64, 128, 128, 4, 3), Config(128, 128, 128, 128, 8, 3)),
            256: (Config(64, 64, 128, 256, 4, 2), Config(128, 64, 256, 256, 8, 3)),
            1024: (Config(64, 64, 64, 128, 4, 2), Config(128, 64, 64, 256, 8, 2)),
            4096: (Config(64, 64, 64, 512, 8, 3),) * 2,
        },
        "tf32": {
            64: (Config(64, 32, 64, 64, 4, 2), Config(128, 64, 64, 64, 8, 2)),
            128: (Config(64, 32, 128, 128, 4, 3), Config(128, 64, 128, 128, 8, 3)),
            256: (Config(64, 32, 64, 256, 8, 2), Config(128, 32, 32, 256, 8, 2)),
            1024: (Config(64, 32, 64, 128, 4, 2), Config(128, 32, 64, 128, 8, 2)),
            4096: (Config(64, 32, 32, 512, 8, 2),) * 2,
        },
        "float32": {
            64: (Config(64, 32, 64, 64, 4, 2), Config(128, 64, 64, 64, 8, 2)),
            128: (Config(64, 32, 32, 128, 4, 2), Config(128, 32, 32, 128, 8, 2)),
            256: (Config(64, 32, 32, 128, 4, 2), Config(128, 32, 32, 128, 8, 2)),
            1024: (Config(64, 32, 32, 128, 4, 2), Config(128, 32, 32, 128, 8, 2)),
            4096: (Config(64, 32, 32, 128, 4, 2), Config(128, 32, 32, 128, 8, 2)),
        },
    },
    loss_only={
        "half": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 64, 128, 128, 4, 2),
            1024: Config(64, 64, 128, 128, 4, 2),
            4096: Config(64, 64, 128, 128, 4, 2),
        },
        "tf32": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 32, 64, 64, 4, 2),
            1024: Config(64, 32, 64, 64, 4, 2),
            4096: Config(64, 32, 64, 64, 4, 2),
        },
        "float32": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 32, 128, 128, 4, 2),
            256: Config(64, 32, 32, 32, 4, 2),
            1024: Config(64, 32, 32, 32, 4, 2),
            4096: Config(64, 32, 32, 32, 4, 2),
        },
    },
    dense={
        "half": {
            64: Config(64, 64, 64, 64, 4, 2),
            128: Config(64, 64, 128, 128, 4, 2),
            256: Config(64, 64, 64, 256, 8, 2),
            1024: Config(64, 64, 64, 256, 8, 2),
            4096: Config(64, 64, 64, 256, 8, 2),
        },
        "tf32": {
            64: Config(64, 64, 64, 64, 8, 2),
            128: Config(64, 64, 128, 128, 8, 2),
            256: Config(64, 32, 64, 128, 8, 2),
            1024: Config(64, 32, 64, 128, 8, 2),
            4096: Config(64, 32, 64, 128, 8, 2),
        },
        "float32": {
            64: Config(64, 32, 64, 64, 8, 2),
            128: Config(64, 32, 32, 128, 8, 2),
            256: Config(64, 32, 32, 128, 8, 2),
            1024: Config(64, 32, 32, 128, 8, 2),
            4096: Config(64, 32, 32, 128, 8, 2),
        },
    },
    sums_per_query=16,
    reorders_tf32=True,
)

#: For cards that nobody has measured (sm_100, gfx942): the same sizes for both and most widths.
UNMEASURED = Family(
    attention={
        "half": dict.fromkeys(WIDTHS, (Config(64, 64, 128, 128, 4, 2),) * 2)
        | {4096: (Config(64, 32, 64, 512, 8, 2),) * 2},
        "tf32": dict.fromkeys(WIDTHS, (Config(64, 32, 32, 128, 4, 2),) * 2)
        | {4096: (Config(64, 32, 32, 256, 8, 2),) * 2},
        "float32": dict.fromkeys(WIDTHS, (Config(64, 32, 32, 128, 4, 2),) * 2),
    },
    loss_only={
        "half": dict.fromkeys(WIDTHS, Config(64, 64, 128, 128, 4, 2))
        | dict.fromkeys((1024, 4096), Config(64, 64, 64, 64, 4, 2)),
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
    "sm_86": AMPERE,  # has less shared memory than sm_80; newer such cards use it too
    "sm_90": HOPPER,
    "sm_100": UNMEASURED._replace(hard_alone={("tf32", 256): Config(64, 32, 64, 64, 4, 2)}),
    "gfx942": UNMEASURED._replace(
        float32_products="ieee",  # AMD's matrix units multiply float32
        hard_alone={("half", 256): Config(64, 64, 128, 128, 4, 2)},
    ),
}


class Hardware(NamedTuple):
    """The properties of a GPU that a plan depends on."""

    family: str  # a key of FAMILIES
    multiprocessors: int


def family_of(index: int | None) -> str | None:
    """The family of GPU ``index`` (``None``: the current one); ``None`` if it is too old."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return "gfx942"  # all of AMD's cards have 64 KiB of local memory
    roomy = properties.shared_memory_per_block_optin >= 163 * 1024
    return family_of_capability(properties.major, properties.minor, roomy)


def family_of_capability(major: int, minor: int, roomy: bool | None = None) -> str | None:
    """The family of an NVIDIA card; ``None`` if it is too old.

    Args:
        major, minor: the compute capability.
        roomy: whether a program may have 163 KiB of shared memory; ``None`` if not known.
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
    """The compute capability of GPU ``index`` as compilers name it, such as ``"sm_90"``."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{10 * major + minor}"


@functools.lru_cache
def hardware_of(device: torch.device) -> Hardware:
    """The properties of ``device`` that plans depend on.

    Raises:
        RuntimeError: the card is in no family.
    """
    family = family_of(device.index)
    if family is None:
        raise RuntimeError(
            f"rrd_kernels has no kernels for {torch.cuda.get_device_name(device)}; use "
            f"backend='reference'"
        )
    return Hardware(family, torch.cuda.get_device_properties(device).multi_processor_count)


def operand_class(precision: str, memory_bytes: int) -> str:
    """The key of a :class:`Family`'s tables for products in ``precision``, with a memory of
    ``memory_bytes`` an element. Half-precision products use TF32's sizes if the memory is wider:
    then tiles are float32 on the way to the tensor cores."""
    if precision in ("float16", "bfloat16"):
        return "half" if memory_bytes == 2 else "tf32"
    return precision


def width_of(dim: int) -> int:
    """The row width of the tables for rows of ``dim`` elements."""
    return next(width for width in WIDTHS if dim <= width)


def look_up(
    blocks: Mapping[str, Mapping[int, Blocks]], precision: str, dim: int, memory_bytes: int
) -> Blocks:
    """The entry of table ``blocks`` for rows of ``dim`` elements; see :func:`operand_class`."""
    return blocks[operand_class(precision, memory_bytes)][width_of(dim)]


def input_precision(family: str, precision: str) -> str:
    """Triton's ``input_precision`` on cards of ``family``; half-precision operands ignore it."""
    if precision == "float32":
        return FAMILIES[family].float32_products
    return "tf32" if precision == "tf32" else "ieee"
