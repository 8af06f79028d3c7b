"""Compiles the kernels that gpu_check.py needs: ``python tests/gpu_pack.py --help``.

No GPU is needed: the calls of each part run on a stand-in, most of them with tensors that have
shapes only, and the launches that a GPU would get are recorded.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gpu_cases
import gpu_sweep
import recorded
import run_files
import sanitizer_case
import torch
import whole_step
from gpu_cases import Sizes
from stand_in_gpu import CPU, GPU

from benchmarks.cases.inputs import Batch, State
from benchmarks.cases.sizes import CUDA_CASES, Case, MomentumCase
from benchmarks.implementations import implementations
from benchmarks.measuring import breakdown
from benchmarks.measuring.clocks import products_in
from rrd_kernels.pack import hardware_for
from rrd_kernels.triton.cards import Hardware, arch_of
from rrd_kernels.triton.runtime import pack
from rrd_kernels.triton.runtime.launch import Specialization, specialize

ROOT = Path(__file__).resolve().parents[1]
#: Of the two parts of gpu_check.py, and of the tests in the second, which takes minutes.
PARTS = ("first", "rest", "tests")


def correctness() -> None:
    sizes = Sizes()
    for cases in (gpu_cases.first_cases, gpu_cases.further_cases, gpu_cases.watched_cases):
        for case in cases(sizes):
            case.fused(case.draw())


def fifo(cases: Iterable[Case]) -> None:
    for case in cases:
        if not isinstance(case, MomentumCase):
            memory = torch.empty(case.rows, case.dim, dtype=case.dtype, device=GPU)
            embeddings = torch.empty(2, case.batch, case.dim, dtype=case.dtype, device=GPU)
            pointer = torch.empty(1, dtype=torch.int64, device=GPU)
            step(case, (memory, pointer), tuple(embeddings))


def momentum(cases: Iterable[Case]) -> None:
    for case in cases:
        if isinstance(case, MomentumCase):
            memories = torch.zeros(2, case.n_data, case.dim, dtype=case.dtype, device=GPU)
            embeddings = torch.zeros(2, case.batch, case.dim, dtype=case.dtype, device=GPU)
            index = torch.zeros(case.batch, dtype=torch.int64, device=GPU)
            columns = torch.zeros(case.batch, case.rows + 1, dtype=torch.int64, device=GPU)
            params = torch.tensor([case.rows, case.nce_t, 1.0, 1.0, case.nce_m], device=GPU)
            step(case, (*memories, params), (*embeddings, index, columns))


def step(case: Case, state: State, batch: Batch) -> None:
    """Of the benchmark."""
    with products_in(case.format):
        implementations(case, GPU)[-1](case, state)(*batch)


def host() -> None:
    for call in breakdown.layers(GPU).values():
        call()


def smoke() -> None:
    for case in sanitizer_case.CASES:
        sanitizer_case.steps(*case)


BFLOAT16 = [case for case in CUDA_CASES if "bfloat16" in case.name]
#: What each part launches; and, on real tensors, what has views that no vector begins at.
CALLS: dict[str, tuple[Callable[[], None], ...]] = {
    "first": (correctness, partial(fifo, BFLOAT16)),
    "rest": (partial(fifo, CUDA_CASES), host),
}
REAL_CALLS: dict[str, tuple[Callable[[], None], ...]] = {
    "first": (smoke, partial(whole_step.in_a_graph, 1)),
    "rest": (smoke, partial(momentum, CUDA_CASES)),
}


def kernels_of(parts: Iterable[str], hardware: Hardware) -> dict[Specialization, None]:
    found: dict[Specialization, None] = {}
    if "rest" in parts:
        found |= dict.fromkeys(map(specialize, gpu_sweep.wanted()))  # of the sweep, for an H200
    for part in parts:
        for call in CALLS.get(part, ()):
            found |= recorded.of_call(call, hardware)
        for call in REAL_CALLS.get(part, ()):
            found |= recorded.of_call(call, hardware, CPU)
    return found | kernels_of_tests() if "tests" in parts else found


def kernels_of_tests() -> dict[Specialization, None]:
    """What the tests launch, which are run on the stand-in."""
    with tempfile.TemporaryDirectory() as scratch:
        noted = Path(scratch) / "kernels"
        python = [sys.executable, "tests/on_stand_in.py", "--record", str(noted)]
        command = run_files.command(python, Path(scratch) / "results")
        subprocess.run(command, cwd=ROOT, check=False)  # whatever fails, what it launched is noted
        return recorded.read(noted)


def table(kernels: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """How many kernels of each name a pack has, and in how many bytes."""
    sizes: dict[str, list[int]] = {}
    for entry in kernels.values():
        size = (folder / entry["file"]).stat().st_size
        sizes.setdefault(entry["specialization"][0][1], []).append(size)
    rows = sorted(sizes.items(), key=lambda row: -sum(row[1]))
    return "\n".join(f"{name:20}{len(of):5}{sum(of) / 1e6:8.2f} MB" for name, of in rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compiles the kernels that gpu_check.py needs. No GPU is needed."
    )
    here = arch_of(0) if torch.cuda.is_available() else "sm_90"
    parser.add_argument(
        "--arch",
        default=here,
        help="architecture to compile for, such as sm_80 or sm_90 (default: that of the GPU here, "
        "else sm_90)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the packs; the kernels go to DIR/ARCH; required without --list",
    )
    parser.add_argument(
        "--part",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="kernels of which part of gpu_check.py; tests: those of the tests in part rest, which "
        "run on the stand-in for this, some minutes (default: all three)",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="compile nothing; print how many kernels the parts need, and how many DIR has",
    )
    chosen = parser.parse_args()
    if not chosen.output and not chosen.list:
        parser.error("give --output, the folder of the packs, or --list")
    return chosen


def main() -> None:
    chosen = parse_arguments()
    arch: str = chosen.arch
    kernels = kernels_of(chosen.part, hardware_for(arch))
    if chosen.list:
        known = pack.Pack(chosen.output / arch).kernels if chosen.output else {}
        there = sum(pack.key_of(kernel, arch) in known for kernel in kernels)
        print(f"{len(kernels)} kernels: {there} in the pack, {len(kernels) - there} missing")
        return
    started = time.monotonic()
    written = pack.write(kernels, arch, chosen.output, report=report)
    print(table(pack.Pack(chosen.output / arch).kernels, chosen.output / arch))
    print(
        f"{written.kernels} kernels for {arch} in {chosen.output}, {written.bytes / 1e6:.1f} MB; "
        f"{written.compiled} compiled in {time.monotonic() - started:.0f} s"
    )
    for kernel in written.refused:
        print(f"left out, since csrc/cuda cannot launch it: {kernel}")


def report(done: int, wanted: int) -> None:
    if done % 50 == 0:
        print(f"{done} of {wanted} kernels", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
