"""What the Triton compiler makes of a launch, for a GPU that need not be there."""

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import triton
from event_order import unknown_order
from gpu_sweep import Variant, described, text_of
from hgmma import touched_too_early
from lanes import lopsided
from triton.backends.compiler import GPUTarget

from benchmarks.cases.sizes import Case
from rrd_kernels.triton.cards import FAMILIES, MAX_DIM, UNMEASURED, WIDTHS, Hardware
from rrd_kernels.triton.fifo.launches import FifoSettings, enqueue_launches, step_launches
from rrd_kernels.triton.fifo.partials import partials_launches
from rrd_kernels.triton.fifo.plan import FifoPlan
from rrd_kernels.triton.momentum.contrastive import ContrastiveSettings, contrastive_launches
from rrd_kernels.triton.momentum.launches import MomentumInputs, MomentumSettings, loss_launches
from rrd_kernels.triton.momentum.updates import normalizer_launches, update_launch
from rrd_kernels.triton.runtime.compiler import compile_kernel
from rrd_kernels.triton.runtime.launch import Launch, specialize


@dataclass(frozen=True)
class Card:
    """A target, and what its processors have."""

    target: GPUTarget
    family: str
    multiprocessors: int
    shared_bytes: int  # that one program may have
    products: str  # pattern of its generation's matrix instructions, in PTX or AMD's assembly


def cuda(capability: int, multiprocessors: int, shared_kib: int, products: str) -> Card:
    target = GPUTarget("cuda", capability, 32)
    return Card(target, f"sm_{capability}", multiprocessors, shared_kib * 1024, products)


# NVIDIA: CUDA C++ Programming Guide, technical specifications per compute capability.
# AMD: CDNA3 instruction set architecture, 64 KiB of LDS.
CARDS = {
    "A100": cuda(80, 108, 163, r"\bmma\.sync"),
    "RTX 3090": cuda(86, 82, 99, r"\bmma\.sync"),
    "H200": cuda(90, 132, 227, r"\bwgmma\.mma_async"),
    "B200": cuda(100, 148, 227, r"\btcgen05\.mma"),
    "MI300X": Card(GPUTarget("hip", "gfx942", 64), "gfx942", 304, 64 * 1024, r"v_mfma_"),
}

#: For kernels without block sizes of a card's own, and without matrix instructions: those of an RTX
#: 3090 are an A100's, in another order, and as far from spilling.
FOR_ROWS = tuple(name for name in CARDS if name != "RTX 3090")


@dataclass(frozen=True)
class Code:
    """A compiled kernel's resources, and how many products it has."""

    registers: int  # of a thread
    spilled: int  # bytes of local memory
    shared: int  # bytes of a program
    products: int  # matrix instructions of the card's generation
    digest: str  # of its assembly, see digest_of


#: Lines of an assembly that say where its source stands, and labels that only they name.
WHERE = re.compile(r"^\s*(\.(file|loc)\s|//|;|[$.]L(__)?(tmp|func_begin|func_end)\d+:)")


def digest_of(assembly: str, name: str) -> str:
    """The same for the same code, whatever its function is called and wherever its source stands:
    what two versions of the package print alike has not changed between them."""
    code = re.split(r"^\s*\.section\s+\.debug", assembly, maxsplit=1, flags=re.MULTILINE)[0]
    lines = (line.split("//")[0].split() for line in code.splitlines() if not WHERE.match(line))
    text = "\n".join(filter(None, map(" ".join, lines)))
    unnamed = re.sub(rf"(?<!\w)(\.L)?{name}(?![a-zA-Z0-9])", r"\1kernel", text)
    return hashlib.sha256(unnamed.encode()).hexdigest()[:12]


def compile_for(launch: Launch, card: Card) -> Code:
    """The launch's kernel, compiled and taken apart."""
    kernel = compile_kernel(specialize(launch), card.target)
    shared, name = kernel.metadata.shared, kernel.metadata.name
    if card.target.backend == "hip":
        return _amd_code(kernel.asm["amdgcn"], shared, card, name)
    ptx = kernel.asm["ptx"]
    wrong = lopsided(ptx)
    assert not wrong, f"lanes with unequal sums: {wrong}"
    usage = cuobjdump("-res-usage", kernel.asm["cubin"])
    products = len(re.findall(card.products, ptx))
    if card.family == "sm_90" and products:
        sass = cuobjdump("--dump-sass", kernel.asm["cubin"])
        assert touched_too_early(sass) == []
        assert unknown_order(sass, ptx) == []
    return Code(
        registers=_number(r"REG:(\d+)", usage),
        spilled=_number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
        shared=shared,
        products=products,
        digest=digest_of(ptx, name),
    )


def opcodes(launch: Launch, card: Card) -> list[str]:
    """Of an NVIDIA GPU's machine code, in order, such as "LDG.E.128"."""
    kernel = compile_kernel(specialize(launch), card.target)
    sass = cuobjdump("--dump-sass", kernel.asm["cubin"])
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\S*)", sass, re.MULTILINE)


def _amd_code(assembly: str, shared: int, card: Card, name: str) -> Code:
    return Code(
        registers=_number(r"\.vgpr_count:\s+(\d+)", assembly),
        spilled=_number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
        + _number(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
        shared=shared,
        products=len(re.findall(card.products, assembly)),
        digest=digest_of(assembly, name),
    )


def cuobjdump(what: str, cubin: bytes) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [program, what, file.name], check=True, capture_output=True, text=True
        )
    return done.stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the compiler's report")
    return int(match.group(1))


@dataclass(frozen=True)
class Job:
    """One kernel of a step to compile."""

    card: str  # a key of CARDS
    batch: int
    size: int
    dim: int
    settings: FifoSettings
    memory_dtype: torch.dtype
    which: int  # of the step's launches
    label: str  # what the rest does not say

    def launch(self) -> Launch:
        return step(
            CARDS[self.card], self.batch, self.size, self.dim, self.settings, self.memory_dtype
        )[self.which]

    def __str__(self) -> str:
        kernel = self.launch().kernel.name
        return f"{kernel} {self.card} {self.settings.precision} D={self.dim} {self.label}"


@dataclass(frozen=True)
class MomentumJob:
    """One kernel of a loss over sampled rows to compile."""

    card: str  # a key of CARDS
    size: int  # of the memories
    dim: int
    settings: MomentumSettings | ContrastiveSettings
    exponential: bool
    memory_dtype: torch.dtype
    kernel: str  # its name

    def launch(self) -> Launch:
        launches = sampled(
            CARDS[self.card],
            self.size,
            self.dim,
            self.settings,
            self.exponential,
            self.memory_dtype,
        )
        return next(launch for launch in launches if launch.kernel.name == self.kernel)

    def __str__(self) -> str:
        similarity = "exponential" if self.exponential else "cosine"
        memory = str(self.memory_dtype).removeprefix("torch.")
        needed = (value for name, value in self.settings._asdict().items() if "need_grad" in name)
        return (
            f"{self.kernel} {self.card} {self.settings.precision} D={self.dim} {similarity}, "
            f"memory {memory}" + ("" if any(needed) else ", loss alone")
        )


@dataclass(frozen=True)
class VariantJob:
    """The second kernel of a step to compile as a variant of the sweep has it."""

    case: Case
    variant: Variant
    card: str = "H200"

    def launch(self) -> Launch:
        return described(self.case, self.variant)[1]

    def __str__(self) -> str:
        launch, config = self.launch(), text_of(self.variant.plan.config)
        dependent = ", dependent" if launch.dependent else ""
        others = "".join(f", {name}={value}" for name, value in self.variant.constants)
        kind = f"{launch.kernel.name} {self.card} {self.case.format} D={self.case.dim}"
        return f"{kind} {config}{dependent}{others}"


AnyJob = Job | MomentumJob | VariantJob


def momentum_inputs(
    size: int, dim: int, exponential: bool, memory_dtype: torch.dtype
) -> MomentumInputs:
    """64 samples of 4097 columns, as tensors that have sizes and no memory."""
    z_s, z_t = torch.empty(2, 64, dim, device="meta")
    memory_v1, memory_v2 = torch.empty(2, size, dim, dtype=memory_dtype, device="meta")
    contrast_idx = torch.empty(64, 4097, dtype=torch.int64, device="meta")
    normalizers = torch.empty(2, device="meta") if exponential else None
    return MomentumInputs(z_s, z_t, memory_v1, memory_v2, contrast_idx, normalizers)


def sampled(
    card: Card,
    size: int,
    dim: int,
    settings: MomentumSettings | ContrastiveSettings,
    exponential: bool,
    memory_dtype: torch.dtype,
) -> list[Launch]:
    inputs = momentum_inputs(size, dim, exponential, memory_dtype)
    hardware = Hardware(card.family, card.multiprocessors)
    if isinstance(settings, ContrastiveSettings):
        return contrastive_launches(inputs, settings, hardware)[1]
    return loss_launches(inputs, settings, hardware)[1]


def compile_job(job: AnyJob) -> Code:
    return compile_for(job.launch(), CARDS[job.card])


def step(
    card: Card,
    batch: int,
    size: int,
    dim: int,
    settings: FifoSettings,
    memory_dtype: torch.dtype,
    plan: FifoPlan | None = None,
) -> tuple[Launch, Launch, Launch]:
    """A step's launches on tensors that have sizes and no memory."""
    z_s, z_t = torch.empty(2, batch, dim, dtype=torch.float32, device="meta")
    memory = torch.empty(size, dim, dtype=memory_dtype, device="meta")
    pointer = torch.empty(1, dtype=torch.int64, device="meta")
    hardware = Hardware(card.family, card.multiprocessors)
    return step_launches(z_s, z_t, memory, pointer, settings, hardware, plan)[1]


def lone_enqueue(
    batch: int, size: int, dim: int, momentum: float, newest_first: bool = False
) -> tuple[Launch, Launch]:
    memory, keys = (torch.empty(rows, dim, device="meta") for rows in (size, batch))
    pointer = torch.empty(1, dtype=torch.int64, device="meta")
    return enqueue_launches(memory, pointer, keys, newest_first, momentum)


def merge_alone(card: Card, dim: int, settings: FifoSettings) -> Launch:
    """The last kernel of relational_partials."""
    z_s, z_t = torch.empty(2, 64, dim, device="meta")
    memory = torch.empty(16384, dim, device="meta")
    hardware = Hardware(card.family, card.multiprocessors)
    return partials_launches(z_s, z_t, memory, settings, hardware)[1][2]


def update_alone(batch: int, size: int, dim: int) -> Launch:
    memory, rows = (torch.empty(count, dim, device="meta") for count in (size, batch))
    index = torch.empty(batch, dtype=torch.int64, device="meta")
    return update_launch(memory, index, rows, momentum=0.5)


def normalizer_estimate(card: Card, size: int, dim: int) -> tuple[Launch, Launch]:
    inputs = momentum_inputs(size, dim, True, torch.float32)
    assert inputs.normalizers is not None
    hardware = Hardware(card.family, card.multiprocessors)
    return normalizer_launches(inputs.normalizers, *inputs[:5], 0.07, hardware)


def cards_and_widths() -> Iterator[tuple[str, int]]:
    """The widths at which a card's kernels differ: where block sizes are the same for all, two, of
    which one has its loop over D unrolled."""
    for name, card in CARDS.items():
        alike = FAMILIES[card.family].attention is UNMEASURED.attention
        yield from ((name, dim) for dim in ((128, MAX_DIM) if alike else WIDTHS))


#: Notes a kernel's code under a name, for the table.
Report = Callable[[Code, str], None]


def fits(job: AnyJob, report: Report) -> Code:
    """The job's code, reported, in which nothing is spilled and which the card has room for."""
    code = compile_job(job)
    report(code, str(job))
    advice = f"give {CARDS[job.card].family} smaller blocks in cards.py"
    assert code.spilled == 0, f"{job} spills {code.spilled} bytes: {advice}"
    assert code.shared <= CARDS[job.card].shared_bytes
    return code


def each(jobs: Iterable[AnyJob]) -> pytest.MarkDecorator:
    """A test for each: a long one but for an H200's bfloat16 and TF32 kernels of the default
    width."""

    def marks(job: AnyJob) -> list[pytest.MarkDecorator]:
        short = not isinstance(job, VariantJob) and (
            (job.card, job.dim) == ("H200", 128) and job.settings.precision in ("bfloat16", "tf32")
        )
        return [] if short else [pytest.mark.long]

    return pytest.mark.parametrize(
        "job", [pytest.param(job, marks=marks(job)) for job in jobs], ids=str
    )


#: A test for each card; of all but the H200, a long one.
on_every_card = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name != "H200")) for name in CARDS]
)


def table(rows: Iterable[Sequence[object]]) -> str:
    """What was reported, aligned."""
    heads = ("kernel", "registers", "spilled", "shared", "products", "digest")
    cells = [heads, *([str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
