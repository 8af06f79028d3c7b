"""The momentum memory's kernels, compiled for GPUs that need not be there, as
test_triton_compile.py does the others."""

import itertools

import pytest
import torch

pytest.importorskip("triton")
from emulated import EMULATED
from machine_code import (
    CARDS,
    FOR_ROWS,
    MomentumJob,
    cards_and_widths,
    compile_for,
    compile_job,
    each,
    fits,
    normalizer_estimate,
    on_every_card,
    sampled,
    update_alone,
)

from rrd_kernels.triton.cards import MAX_DIM, WIDTHS
from rrd_kernels.triton.common.launches import STORAGE
from rrd_kernels.triton.momentum.contrastive import ContrastiveSettings
from rrd_kernels.triton.momentum.launches import MomentumSettings
from rrd_kernels.triton.runtime.launch import specialize

pytestmark = pytest.mark.skipif(EMULATED, reason="not of what is emulated")

#: Rows of a memory that fill every tile, and that do not.
EVEN, ODD = 49984, 50000 + 5
DENSE = ("dense_statistics", "dense_gradient", "dense_contrast")
GATHER = ("gather_statistics", "gather_gradient", "gather_contrast")


def settings(
    precision, method, need_grad=True, kernel=""
) -> MomentumSettings | ContrastiveSettings:
    if "contrast" in kernel:
        return ContrastiveSettings(0.07, precision, 1, method, need_grad, need_grad)
    return MomentumSettings(0.1, 0.02, 0.07, precision, 1, method, need_grad)


def dense_jobs():
    compiled = set(cards_and_widths())
    for (card, dim), precision, exponential, kernel in itertools.product(
        cards_and_widths(), STORAGE, (False, True), DENSE
    ):
        # The cosine's kernels are those that spill first: one card is enough for the others. The
        # contrastive loss has the exponential alone.
        if (exponential and card != "H200") if "contrast" not in kernel else not exponential:
            continue
        # Only the number of passes of the loops over D differs from 1024, not the block sizes.
        if dim == MAX_DIM and (card, 1024) in compiled:
            continue
        wanted = settings(precision, "dense", kernel=kernel)
        yield MomentumJob(card, EVEN, dim, wanted, exponential, STORAGE[precision], kernel)


@each(dense_jobs())
def test_dense(job, report):
    assert fits(job, report).products > 0


def mixed_jobs():
    pairs = (("bfloat16", torch.float32), ("float32", torch.bfloat16))
    for card, (precision, dtype), dim, kernel in itertools.product(
        CARDS, pairs, (128, 1024), DENSE
    ):
        wanted = settings(precision, "dense", kernel=kernel)
        yield MomentumJob(card, EVEN, dim, wanted, True, dtype, kernel)


@each(mixed_jobs())
def test_memories_of_another_dtype(job, report):
    """float32 rows that become bfloat16 on their way, and the reverse."""
    assert fits(job, report).products > 0


def masked_jobs():
    shapes = ((ODD, 128), (EVEN, 100), (ODD, 1000))
    for card, (size, dim), precision, kernel in itertools.product(
        ("A100", "H200"), shapes, ("bfloat16", "float32"), DENSE
    ):
        wanted = settings(precision, "dense", kernel=kernel)
        yield MomentumJob(card, size, dim, wanted, True, STORAGE[precision], kernel)


@each(masked_jobs())
def test_masks(job, report):
    """Rows that fill no tile, D that fills no block: masks may spill a little, and must fit."""
    code = compile_job(job)
    report(code, str(job))
    assert code.products > 0
    assert code.shared <= CARDS[job.card].shared_bytes


def gather_jobs():
    for card, dim, dtype, kernel in itertools.product(
        FOR_ROWS, (*WIDTHS, 100), (torch.float32, torch.bfloat16), GATHER
    ):
        wanted = settings("float32", "gather", kernel=kernel)
        yield MomentumJob(card, ODD, dim, wanted, True, dtype, kernel)


@each(gather_jobs())
def test_gather(job, report):
    fits(job, report)


def end_jobs():
    kernels = ("prepare", "count_columns", "momentum_combine")
    kernels += ("contrastive_combine", "dense_contrast")
    for card, dim, need_grad, kernel in itertools.product(
        CARDS, (128, MAX_DIM), (False, True), kernels
    ):
        if kernel == "dense_contrast" and need_grad:
            continue
        wanted = settings("bfloat16", "dense", need_grad, kernel)
        yield MomentumJob(card, ODD, dim, wanted, True, torch.float32, kernel)


@each(end_jobs())
def test_other_kernels(job, report):
    fits(job, report)


@pytest.mark.parametrize("dim", [128, MAX_DIM])
@on_every_card
def test_update_and_estimate(name, dim, report):
    for launch in (update_alone(64, EVEN, dim), *normalizer_estimate(CARDS[name], EVEN, dim)):
        code = compile_for(launch, CARDS[name])
        report(code, f"{launch.kernel.name} {name} D={dim}")
        assert code.spilled == 0


def test_sizes_make_no_new_code():
    """The memory's size is not compiled in, but for tiles that are all full."""
    for method, kernel in itertools.product(("dense", "gather"), ("", "contrast")):
        wanted = settings("tf32", method, kernel=kernel)
        sources = [
            [
                specialize(launch)
                for launch in sampled(CARDS["H200"], size, 128, wanted, True, torch.float32)
            ]
            for size in (EVEN, 12800)
        ]
        assert sources[0] == sources[1]
