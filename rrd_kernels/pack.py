"""Compiles GPU kernels ahead of time, without a GPU: ``python -m rrd_kernels.pack --help``."""

import argparse
import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.loss import PROTOCOLS
from rrd_kernels.triton.cards import MAX_DIM, Hardware, family_of_capability
from rrd_kernels.triton.common.launches import FEWEST_SPLITS, STORAGE
from rrd_kernels.triton.fifo.launches import FifoSettings, enqueue_launches, step_launches
from rrd_kernels.triton.fifo.partials import partials_launches
from rrd_kernels.triton.momentum.contrastive import ContrastiveSettings, contrastive_launches
from rrd_kernels.triton.momentum.launches import MomentumInputs, MomentumSettings, loss_launches
from rrd_kernels.triton.momentum.updates import normalizer_launches, update_launch
from rrd_kernels.triton.runtime.installed import triton_found
from rrd_kernels.triton.runtime.launch import Launch, specialize
from rrd_kernels.triton.runtime.pack import VARIABLE, write

#: Assumed for planning. :func:`for_other_splits` adds the kernels that depend on this number.
MULTIPROCESSORS = 132

EXPLANATION = f"""\
Compiles the kernels that training with rrd_kernels.RRDLoss, CRDLoss or RelationalQueue needs
(forward, backward and evaluation) for each combination of the given sizes and dtypes. Smaller
batches are included. The machine code goes into DIR/ARCH. Set {VARIABLE}=DIR on the machine
with the GPU to use these kernels: no compiler is needed or imported. Triton compiles a kernel that
the pack lacks at its first use. A pack that is older than the package's kernels is refused with an
error.

Example for an H200 and the published settings:

  python -m rrd_kernels.pack --arch sm_90 --output kernels --dtype float32 bfloat16
  {VARIABLE}=kernels python train.py
"""


def hardware_for(arch: str) -> Hardware:
    """The hardware to plan for, from a compute capability such as ``sm_90``.

    Raises:
        ValueError: there are no kernels for ``arch``.
    """
    found = re.fullmatch(r"sm_(\d+)(\d)", arch)
    family = family_of_capability(int(found[1]), int(found[2])) if found else None
    if family is None:
        raise ValueError(f"--arch must be sm_80 or later; got {arch!r}")
    return Hardware(family, MULTIPROCESSORS)


def _shape(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory (meta), whose pointer counts as aligned for vector loads."""
    return torch.empty(shape, dtype=dtype, device="meta")


def fifo_launches(
    batch: int,
    size: int,
    dim: int,
    dtype: torch.dtype,
    memory_dtype: torch.dtype,
    precision: str,
    hardware: Hardware,
    enqueue: str = "before",
    momentum: float = 0.0,
    tau_s: float = 0.1,
    tau_t: float = 0.02,
    own_pair: bool = False,
    kl: bool = False,
    newest_first: bool = False,
) -> Iterator[Launch]:
    """Launches of training and evaluation with a FIFO memory, whole or spread over ranks.

    Args:
        batch, size, dim: B, K, D.
        dtype: dtype of the embeddings.
        memory_dtype: dtype of the memory.
        precision: format of the products' operands: ``"float32"``, ``"tf32"``, ``"float16"`` or
            ``"bfloat16"``.
        hardware: the GPU that the launches are planned for.
        enqueue, momentum, tau_s, tau_t, own_pair, newest_first: as in
            :func:`rrd_kernels.functional.relational_step_`.
        kl: whether ``divergence`` is "kl".
    """
    z_s, z_t = (_shape(batch, dim, dtype=dtype) for _ in range(2))
    memory = _shape(size, dim, dtype=memory_dtype)
    ptr, index = _shape(1, dtype=torch.int64), _shape(batch, dtype=torch.int64)
    # unit_memory is set when a memory is constructed or loaded: pack kernels for both values.
    for unit_memory, need_grad in itertools.product((True, False), repeat=2):
        loss = FifoSettings(tau_s, tau_t, unit_memory, own_pair, kl, precision, 1, need_grad)
        step = loss._replace(enqueue=enqueue, newest_first=newest_first, momentum=momentum)
        yield from step_launches(z_s, z_t, memory, ptr, step, hardware)[1]
        yield from step_launches(z_s, z_t, memory, None, loss, hardware)[1]
        partials = loss._replace(own_pair=False, reduction=0)
        yield from partials_launches(z_s, z_t, memory, partials, hardware)[1]
    yield from enqueue_launches(memory, ptr, z_t, newest_first, momentum)
    yield update_launch(memory, index, z_t, momentum)


def momentum_launches(
    batch: int,
    columns: int,
    n_data: int,
    dim: int,
    dtype: torch.dtype,
    memory_dtype: torch.dtype,
    precision: str,
    hardware: Hardware,
    momentum: float = 0.5,
    method: str = "auto",
) -> Iterator[Launch]:
    """Launches of training and evaluation with a momentum memory, for both similarities and for
    CRD's loss.

    Args:
        batch, columns, n_data, dim: B, P, n_data, D.
        dtype, memory_dtype, precision, hardware: as in :func:`fifo_launches`.
        momentum, method: ``nce_m`` and ``method`` of :class:`rrd_kernels.MomentumMemory` and
            :class:`rrd_kernels.CRDLoss`.
    """
    z_s, z_t = (_shape(batch, dim, dtype=dtype) for _ in range(2))
    memory_v1, memory_v2 = (_shape(n_data, dim, dtype=memory_dtype) for _ in range(2))
    contrast_idx = _shape(batch, columns, dtype=torch.int64)
    normalizers, index = _shape(2, dtype=torch.float32), _shape(batch, dtype=torch.int64)
    views = z_s, z_t, memory_v1, memory_v2, contrast_idx
    for of_exponentials, need_grad in itertools.product((normalizers, None), (True, False)):
        settings = MomentumSettings(0.1, 0.02, 0.07, precision, 1, method, need_grad)
        yield from loss_launches(MomentumInputs(*views, of_exponentials), settings, hardware)[1]
    for need_grad in (True, False):
        contrastive = ContrastiveSettings(0.07, precision, 1, method, need_grad, need_grad)
        inputs = MomentumInputs(*views, normalizers)
        yield from contrastive_launches(inputs, contrastive, hardware)[1]
    yield from normalizer_launches(normalizers, *views, 0.07, hardware)
    yield update_launch(memory_v1, index, z_t, momentum)


def for_other_splits(launches: Iterable[Launch]) -> Iterator[Launch]:
    """Adds the merge and combine kernels of other batches and multiprocessor counts.

    They are compiled for a power of two that holds the splits. Smaller batches have more splits.
    """
    listed = list(launches)
    most = max((launch.constants.get("SPLITS", 0) for launch in listed), default=0)
    powers = [FEWEST_SPLITS << n for n in range(17) if FEWEST_SPLITS << n <= 2 * most]
    for launch in listed:
        if "SPLITS" not in launch.constants:
            yield launch
            continue
        for splits in powers:
            yield launch._replace(constants=launch.constants | {"SPLITS": splits})


def launches(chosen: argparse.Namespace, arch: str) -> Iterator[Launch]:
    """Launches for every combination of the command line's options."""
    hardware = hardware_for(arch)
    sizes = itertools.product({1, *chosen.batch}, chosen.rows, chosen.dim)
    for (batch, rows, dim), name in itertools.product(sizes, chosen.dtype):
        dtype, memory_dtype = (getattr(torch, n) for n in (name, chosen.memory_dtype or name))
        tensors = (torch.empty(0, dtype=kind, device="meta") for kind in (dtype, memory_dtype))
        precision = check.settle_precision(chosen.precision, *tensors) or "float32"
        common = (dtype, memory_dtype, precision, hardware)
        if chosen.n_data is not None:
            yield from momentum_launches(
                batch, rows + 1, chosen.n_data, dim, *common, chosen.momentum
            )
            continue
        for protocol in chosen.protocol:
            published = PROTOCOLS[protocol]
            yield from fifo_launches(
                *(batch, rows, dim, *common),
                enqueue=chosen.enqueue or published.enqueue,
                momentum=chosen.momentum,
                tau_s=published.tau_s,
                tau_t=published.tau_t if chosen.tau_t is None else chosen.tau_t,
                own_pair=chosen.own_pair,
                kl=chosen.divergence == "kl",
                newest_first=chosen.newest_first,
            )


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rrd_kernels.pack",
        description="Compiles GPU kernels ahead of time, without a GPU.",
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    dtypes = ("float32", "bfloat16", "float16")
    add = parser.add_argument
    add("--arch", nargs="+", required=True, help="compute capabilities, such as sm_80 sm_90")
    add("--output", type=Path, required=True, metavar="DIR", help="folder that holds the packs")
    add("--batch", nargs="+", type=int, default=[64], metavar="B", help="batch sizes; default: 64")
    add(
        "--rows",
        nargs="+",
        type=int,
        default=[16384],
        metavar="K",
        help="nce_k: rows of a FIFO memory, negatives of a momentum memory; default: 16384",
    )
    add(
        "--dim",
        nargs="+",
        type=int,
        default=[128],
        metavar="D",
        help="feat_dim: widths of the embeddings; default: 128",
    )
    add(
        "--dtype",
        nargs="+",
        choices=dtypes,
        default=["float32"],
        help="dtypes of the embeddings; default: float32",
    )
    add("--memory-dtype", choices=dtypes, help="dtype of the memory; default: the embeddings'")
    add(
        "--precision",
        choices=tuple(STORAGE),
        help="format of the products' operands; default: from the two dtypes",
    )
    add(
        "--protocol",
        nargs="+",
        choices=tuple(PROTOCOLS),
        default=["2025"],
        help="published versions, for a FIFO memory; default: 2025",
    )
    add(
        "--tau-t",
        type=float,
        metavar="T",
        help="teacher temperature of a FIFO memory, of which only 0, the hard target, needs other "
        "kernels; default: the protocol's",
    )
    add("--own-pair", action="store_true", help="RelationalQueue's own_pair")
    add(
        "--divergence",
        choices=check.DIVERGENCES,
        default="cross_entropy",
        help="RelationalQueue's divergence; default: cross_entropy",
    )
    add("--enqueue", choices=("before", "after"), help="default: the protocol's")
    add("--newest-first", action="store_true", help="RelationalQueue's newest_first")
    add("--n-data", type=int, metavar="N", help="rows of a momentum memory; default: a FIFO memory")
    add(
        "--momentum",
        type=float,
        metavar="M",
        help="slot_momentum or nce_m; default: 0 for a FIFO memory, 0.5 for a momentum memory",
    )
    add("--workers", type=int, metavar="N", help="compiling processes; default: one per core")
    chosen = parser.parse_args(arguments)
    if chosen.momentum is None:
        chosen.momentum = 0.0 if chosen.n_data is None else 0.5
    try:
        _check(chosen)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return chosen


def _check(chosen: argparse.Namespace) -> None:
    for arch in chosen.arch:
        hardware_for(arch)
    sizes: dict[str, list[Any]] = {name: getattr(chosen, name) for name in ("batch", "rows", "dim")}
    sizes |= {
        name: [n] for name in ("n_data", "workers") if (n := getattr(chosen, name)) is not None
    }
    for name, values in sizes.items():
        for value in values:
            check.check_size(f"--{name.replace('_', '-')}", value)
    check.check_momentum("--momentum", chosen.momentum)
    if chosen.tau_t is not None:
        check.check_target("--tau-t", chosen.tau_t, chosen.own_pair)
    if max(chosen.dim) > MAX_DIM:
        raise ValueError(f"--dim must be at most {MAX_DIM}; got {max(chosen.dim)}")
    if chosen.n_data is None and max(chosen.batch) > min(chosen.rows):
        raise ValueError(
            f"--batch must be at most --rows; got {max(chosen.batch)} and {min(chosen.rows)}"
        )
    if chosen.output.exists() and not chosen.output.is_dir():
        raise ValueError(f"--output must be a folder; got {chosen.output}, which is not one")


def main(arguments: Sequence[str]) -> int:
    chosen = parse_arguments(arguments)
    if torch.version.hip is not None:
        sys.exit("rrd_kernels.pack: packs are for NVIDIA GPUs, but this PyTorch is for AMD GPUs.")
    if not triton_found():
        sys.exit(
            "rrd_kernels.pack: Triton, which compiles the kernels, is not installed. Install it."
        )
    for arch in chosen.arch:
        started = time.monotonic()
        wanted = {specialize(launch) for launch in for_other_splits(launches(chosen, arch))}
        written = write(wanted, arch, chosen.output, workers=chosen.workers, report=_report)
        print(
            f"{chosen.output / arch}: {written.kernels} kernels, {written.bytes / 1e6:.1f} MB, "
            f"{written.compiled} of them compiled now in {time.monotonic() - started:.0f} s"
        )
        for refused in written.refused:
            print(f"left out: {refused.kernel.name} needs more than the launcher provides")
    print(f"Set {VARIABLE}={chosen.output} to use these kernels.")
    return 0


def _report(done: int, wanted: int) -> None:
    print(f"\r{done} of {wanted} kernels", end="" if done < wanted else "\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
