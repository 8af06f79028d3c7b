"""Block sizes of the sampled loss's dense kernels, by device family, operands and width.

Chosen as the FIFO memory's: the largest that compile without a spilled register, within the
family's shared memory, with Triton 3.6 too.
"""

from rrd_kernels.triton.fifo.table import WIDTHS, Config

#: ``block_m`` is samples. Rows wider than ``block_k`` are multiplied in a loop.
DENSE: dict[str, dict[str, dict[int, Config]]] = {
    "sm_80": {
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
    "sm_90": {
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
    "others": {
        "half": dict.fromkeys(WIDTHS, Config(64, 64, 64, 128, 4, 2)),
        "tf32": dict.fromkeys(WIDTHS, Config(64, 32, 64, 128, 4, 2)),
        "float32": dict.fromkeys(WIDTHS, Config(64, 32, 16, 128, 8, 2)),
    },
}
