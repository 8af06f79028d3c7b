"""Block sizes by device family, operands and width: for a small problem and a large one, and for
the loss alone.

Chosen among candidates as the largest blocks that compile without a spilled register, within the
family's shared memory, with the oldest supported Triton and with the newest; ``make kernels``
prints what the compiler makes of each.
"""

from typing import NamedTuple


class Config(NamedTuple):
    """Block sizes of an attention kernel."""

    block_m: int  # queries, or samples for the loss alone
    block_n: int  # memory rows of a tile
    block_k: int  # elements of a row that are multiplied at a time
    block_d: int  # elements of the output that one program has, at least block_k
    num_warps: int
    num_stages: int
    programs: int = 1  # that a multiprocessor is to hold at a time


#: A row of D elements is looked up under the first that holds it.
WIDTHS = (64, 128, 256, 1024)

#: The table's column of families that have none of their own. "sm_80" fits what is newer and has
#: less shared memory; "others" are only compiled for, and have one row for each operand.
COLUMN = {"sm_86": "sm_80", "sm_100": "others", "gfx942": "others"}

ATTENTION: dict[str, dict[str, dict[int, tuple[Config, Config]]]] = {
    "sm_80": {
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
    "sm_90": {
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
    "others": {
        "half": dict.fromkeys(WIDTHS, (Config(64, 64, 128, 128, 4, 2),) * 2),
        "tf32": dict.fromkeys(WIDTHS, (Config(64, 32, 32, 128, 4, 2),) * 2),
        "float32": dict.fromkeys(WIDTHS, (Config(64, 32, 32, 128, 4, 2),) * 2),
    },
}
LOSS: dict[str, dict[str, dict[int, Config]]] = {
    "sm_80": {
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
    "sm_90": {
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
    "others": {
        "half": dict.fromkeys(WIDTHS, Config(64, 64, 128, 128, 4, 2)),
        "tf32": dict.fromkeys(WIDTHS, Config(64, 32, 64, 64, 4, 2)),
        "float32": dict.fromkeys(WIDTHS, Config(64, 32, 32, 32, 4, 2)),
    },
}
