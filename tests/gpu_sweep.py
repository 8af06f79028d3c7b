"""Times variants of a step's plan: block sizes, splits and launches other than the table's.

Each variant differs from the table's plan in one point that arithmetic or machine code suggests;
none has been measured yet. Each is checked before it is timed. The plans are for GPUs of compute
capability 9.0, such as an H200. Options are those of ``python -m benchmarks.report``: --cases,
--seconds, --output, --record-only, --quick.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package is not installed here

from benchmarks.cases.sizes import CUDA_CASES, Case
from benchmarks.implementations.step import FifoStep, Step
from benchmarks.measuring.run import OURS, run_case
from benchmarks.report import __main__ as report
from rrd_kernels.triton.cards import Config, Hardware
from rrd_kernels.triton.fifo.launches import FifoBuffers, FifoSettings, step_launches
from rrd_kernels.triton.fifo.plan import FifoPlan, make_plan
from rrd_kernels.triton.runtime import run as launcher
from rrd_kernels.triton.runtime.launch import Launch

H200 = Hardware("sm_90", 132)

#: Block sizes by format and D, for every size: where the table calls one large is a guess. Programs
#: of one warpgroup share a multiprocessor: one's softmax runs beside another's products.
CONFIGS = {
    ("bfloat16", 128): (
        *(Config(128, 128, 128, 128, 8, stages) for stages in (2, 3, 4)),
        Config(128, 64, 128, 128, 4, 3, programs=2),
        Config(64, 128, 128, 128, 4, 2, programs=2),
        Config(128, 32, 128, 128, 4, 4, programs=2),
        Config(64, 64, 128, 128, 4, 3, programs=3),
    ),
    ("bfloat16", 64): (
        *(Config(128, 128, 64, 64, 8, stages) for stages in (2, 3, 4)),
        Config(128, 64, 64, 64, 4, 3, programs=2),
        Config(64, 128, 64, 64, 4, 3, programs=3),
        Config(64, 64, 64, 64, 4, 3, programs=4),
    ),
    ("tf32", 128): (
        Config(128, 64, 128, 128, 8, 3),
        Config(64, 64, 128, 128, 4, 2, programs=2),
        Config(64, 32, 128, 128, 4, 3, programs=2),
    ),
}
#: Numbers of splits, for a batch of at most so many samples: the others fill the chip with few.
SPLITS, FEW = (26, 32, 37, 43, 52, 64), 64
#: What the table's plan is called, to which the others' ratios are.
TABLE = OURS


class Variant(NamedTuple):
    """A plan, and constants of the second kernel in place of its own."""

    name: str
    plan: FifoPlan
    constants: tuple[tuple[str, Any], ...] = ()


def takes(case: Case) -> bool:
    """Whether there are variants for its format and width."""
    return (case.format, case.dim) in CONFIGS


def variants(case: Case, hardware: Hardware = H200) -> list[Variant]:
    """The table's plan first, then the others, each once."""
    sizes = (case.batch, case.rows, case.dim, case.format, case.dtype.itemsize)
    plan = partial(make_plan, *sizes, True, hardware)
    table, plans = plan(), [plan(config) for config in CONFIGS[case.format, case.dim]]
    found = [Variant(TABLE, table), Variant("dependent launches", table._replace(dependent=True))]
    if case.batch <= FEW:
        found += [Variant(f"{splits} splits", plan(splits=splits)) for splits in SPLITS]
    found += [Variant(text_of(other.config), other) for other in plans]
    if case.format == "tf32":
        for one in (table, plans[0]):
            name = f"{text_of(one.config)}, in order"
            found.append(Variant(name, one, (("REORDER_WARPS", 0),)))
    names = {(variant.plan, variant.constants): variant.name for variant in reversed(found)}
    return [one for one in found if names[one.plan, one.constants] == one.name]


def text_of(config: Config) -> str:
    """Such as "128×64, 4 warps, 3 stages, ×2", the programs of a multiprocessor."""
    blocks, warps = f"{config.block_m}×{config.block_n}", f"{config.num_warps} warps"
    return f"{blocks}, {warps}, {config.num_stages} stages, ×{config.programs}"


class VariantStep(FifoStep):
    """A step as a variant has it: the gradient as the kernels leave it, with no autograd above."""

    variant: ClassVar[Variant]

    def __init__(self, case: Case, state: tuple[Tensor, ...]) -> None:
        super().__init__(case, state)
        self.case = case

    def launches(
        self, z_s: Tensor, z_t: Tensor
    ) -> tuple[FifoBuffers, tuple[Launch, Launch, Launch]]:
        """What is written, and what is launched for it."""
        case, tensors = self.case, (z_s, z_t, self.memory, self.pointer)
        settings = FifoSettings(
            case.tau_s, case.tau_t, True, False, False, case.format, 1, True, "before"
        )
        buffers, (first, middle, last) = step_launches(*tensors, settings, H200, self.variant.plan)
        constants = middle.constants | dict(self.variant.constants)
        return buffers, (first, middle._replace(constants=constants), last)

    def __call__(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        buffers, listed = self.launches(z_s, z_t)
        launcher.run(listed)
        return buffers.loss, buffers.grad_z_s


def step_of(variant: Variant) -> type[VariantStep]:
    name = variant.name if variant.name == TABLE else f"{TABLE}, {variant.name}"
    return type("OneVariant", (VariantStep,), {"name": name, "variant": variant})


def implementations(case: Case, device: torch.device) -> list[type[Step]]:
    """With plans for as many multiprocessors as the card has."""
    count = torch.cuda.get_device_properties(device).multi_processor_count
    hardware = H200._replace(multiprocessors=count)
    return [step_of(variant) for variant in variants(case, hardware)]


def described(case: Case, variant: Variant) -> tuple[Launch, ...]:
    """A step's launches, on tensors that have sizes and no memory."""
    empty = partial(torch.empty, dtype=case.dtype, device="meta")
    memory, z = empty(case.rows, case.dim), empty(case.batch, case.dim)
    pointer = empty(1, dtype=torch.int64)
    return step_of(variant)(case, (memory, pointer)).launches(z, z)[1]


def wanted() -> list[Launch]:
    """All launches of the sweep on an H200, to compile them ahead."""
    pairs = [(case, variant) for case in CUDA_CASES if takes(case) for variant in variants(case)]
    return [launch for pair in pairs for launch in described(*pair)]


def parts(chosen: argparse.Namespace) -> Iterator[report.Part]:
    for case in filter(takes, chosen.cases):
        kinds = implementations(case, chosen.device)
        run = partial(run_case, case, kinds, chosen.seconds, chosen.device, memory=False)
        yield f"variants of {case.name}", run


def main() -> int:
    arguments, prog = [*sys.argv[1:], "--device=cuda"], "python tests/gpu_sweep.py"
    if {"-h", "--help"} & set(arguments):  # needs no GPU
        report.parse_arguments(arguments, prog)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        sys.exit("gpu_sweep.py has plans for GPUs of compute capability 9.0, such as an H200, only")
    return report.main(arguments, prog, parts)


if __name__ == "__main__":
    sys.exit(main())
