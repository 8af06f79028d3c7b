"""Every kernel and configuration, compiled for GPUs that need not be there.

Asserted: no register spilled, shared memory within the card's, matrix instructions of the card's
own generation. What was found is printed when the run ends; ``make kernels`` prints it alone.
"""

import itertools
import math

import pytest
import torch

pytest.importorskip("triton")
from emulated import EMULATED
from gpu_sweep import TABLE, takes, variants
from machine_code import (
    CARDS,
    Job,
    VariantJob,
    cards_and_widths,
    compile_for,
    compile_job,
    each,
    fits,
    lone_enqueue,
    merge_alone,
    on_every_card,
    opcodes,
    step,
)

from benchmarks.cases.sizes import CUDA_CASES
from rrd_kernels.triton.cards import FAMILIES, MAX_DIM, Hardware, look_up
from rrd_kernels.triton.common.launches import STORAGE
from rrd_kernels.triton.fifo.launches import FifoSettings
from rrd_kernels.triton.fifo.plan import make_plan
from rrd_kernels.triton.runtime.launch import specialize

pytestmark = pytest.mark.skipif(EMULATED, reason="not of what is emulated")

#: B and K of a problem that the table calls small, and of one that it calls large.
SMALL, LARGE = (64, 16384), (1024, 65536)
SIZES = {"small": SMALL, "large": LARGE, "loss alone": SMALL}
PREPARE, ATTEND, COMBINE = range(3)


def settings(
    precision, *, bounded=True, need_grad=True, tau_t=0.02, own_pair=False, kl=False, **others
) -> FifoSettings:
    form = tau_t, bounded, own_pair, kl
    return FifoSettings(0.1, *form, precision, 1, need_grad, **others)


#: Arguments of other forms of the loss: all that is added to the last kernel, and a hard target.
WHOLE = {"own_pair": True, "kl": True}
HARD = {"own_pair": True, "tau_t": 0.0}


def parts_of(card, precision, dim, dtype):
    """The problems for which a card has block sizes of their own."""
    small, large = look_up(FAMILIES[CARDS[card].family].attention, precision, dim, dtype.itemsize)
    return [part for part in SIZES if part != "large" or large != small]


def attention_jobs():
    compiled = set(cards_and_widths())
    for (card, dim), precision, path in itertools.product(
        cards_and_widths(), STORAGE, ("bounded", "online")
    ):
        for part in parts_of(card, precision, dim, STORAGE[precision]):
            alone = part == "loss alone"
            # Of the loss alone only the number of passes of its loop over D differs.
            if alone and dim == MAX_DIM and (card, 1024) in compiled:
                continue
            # A bounded kernel holds the online pass too, for promises that prove false. By itself
            # it is compiled for one card, and where there is no bounded one: float16's weights are
            # shifted.
            if path == "online":
                wanted = card == "H200" or (precision == "float16" and not alone)
            else:
                wanted = precision != "float16" or alone
            if wanted:
                options = settings(precision, bounded=path == "bounded", need_grad=not alone)
                label = f"{part} {path}"
                yield Job(card, *SIZES[part], dim, options, STORAGE[precision], ATTEND, label)


@each(attention_jobs())
def test_attention(job, report):
    assert fits(job, report).products > 0


def form_jobs():
    """The second kernel of the forms that have one of their own."""
    for card, precision, need_grad in itertools.product(
        ("A100", "H200"), ("bfloat16", "tf32", "float32"), (True, False)
    ):
        form, name = (HARD, "hard target") if need_grad else (WHOLE, "kl, loss alone")
        wanted = settings(precision, need_grad=need_grad, **form)
        yield Job(card, *SMALL, 128, wanted, STORAGE[precision], ATTEND, name)
    alone = settings("bfloat16", need_grad=False, **HARD)
    yield Job("H200", *SMALL, 128, alone, torch.bfloat16, ATTEND, "hard target, loss alone")
    # Where a card has block sizes of its own for it.
    for card, precision, dim in (
        ("A100", "bfloat16", 1024),
        ("RTX 3090", "bfloat16", MAX_DIM),
        ("B200", "tf32", 256),
        ("MI300X", "bfloat16", 256),
    ):
        for bounded in (True, False):
            alone = settings(precision, bounded=bounded, need_grad=False, **HARD)
            label = f"hard target, loss alone, {'bounded' if bounded else 'online'}"
            yield Job(card, *SMALL, dim, alone, STORAGE[precision], ATTEND, label)
    alone = settings("bfloat16", need_grad=False, **WHOLE)
    yield Job("B200", *SMALL, 1024, alone, torch.bfloat16, ATTEND, "kl, loss alone")
    # The form with the most in the last kernel, where a row is widest; and the least.
    for card, form, dim in (*((card, WHOLE, MAX_DIM) for card in CARDS), ("H200", HARD, 128)):
        name = ", ".join(form)
        wanted = settings("tf32", enqueue="after", newest_first=True, momentum=0.5, **form)
        yield Job(card, *SMALL, dim, wanted, torch.float32, COMBINE, name)


@each(form_jobs())
def test_forms_of_the_loss(job, report):
    fits(job, report)


def mixed_jobs():
    pairs = (("bfloat16", torch.float32), ("float32", torch.bfloat16))
    for card, (precision, dtype), dim in itertools.product(CARDS, pairs, (128, MAX_DIM)):
        for part in parts_of(card, precision, dim, dtype):
            wanted = settings(precision, need_grad=part != "loss alone")
            label = f"{part} bounded, memory {str(dtype).removeprefix('torch.')}"
            yield Job(card, *SIZES[part], dim, wanted, dtype, ATTEND, label)


@each(mixed_jobs())
def test_a_memory_of_another_dtype(job, report):
    """float32 rows that become bfloat16 on their way, and the reverse."""
    assert fits(job, report).products > 0


def masked_jobs():
    shapes = ((16384 + 5, 128), (16384, 100), (16384 + 5, 1000))
    for card, (size, dim), precision, bounded, need_grad in itertools.product(
        ("A100", "H200"), shapes, ("bfloat16", "float32"), (True, False), (True, False)
    ):
        wanted = settings(precision, bounded=bounded, need_grad=need_grad)
        label = f"K={size} {'bounded' if bounded else 'online'}"
        label += "" if need_grad else " loss alone"
        yield Job(card, 64, size, dim, wanted, STORAGE[precision], ATTEND, label)


@each(masked_jobs())
def test_masks(job, report):
    """Rows that fill no tile, D that fills no block: masks may spill a little, and must fit."""
    code = compile_job(job)
    report(code, str(job))
    assert code.products > 0
    assert code.shared <= CARDS[job.card].shared_bytes


def row_jobs():
    kinds = (("bfloat16", True, "before"), ("tf32", True, "after"), ("float32", False, "never"))
    for card, dim, (precision, need_grad, enqueue), which in itertools.product(
        CARDS, (128, MAX_DIM), kinds, (PREPARE, COMBINE)
    ):
        wanted = settings(precision, need_grad=need_grad, enqueue=enqueue, momentum=0.5)
        label = f"enqueue {enqueue}" + ("" if need_grad else ", loss alone")
        yield Job(card, *SMALL, dim, wanted, torch.float32, which, label)


@each(row_jobs())
def test_first_and_last_kernel(job, report):
    fits(job, report)


def variant_jobs():
    """One of each kernel but the table's, whatever its grid."""
    found = {}
    swept = filter(takes, CUDA_CASES)
    for job in (VariantJob(case, variant) for case in swept for variant in variants(case)):
        kernel = specialize(job.launch()), job.variant.plan.config.programs
        found.setdefault(kernel, job)
    return [job for job in found.values() if job.variant.name != TABLE]


@each(variant_jobs())
def test_variants_of_the_sweep(job, report):
    """They may spill, but must run on the card, as many at a time as the plan counts on."""
    code = compile_job(job)
    report(code, str(job))
    assert code.products > 0
    programs, threads = job.variant.plan.config.programs, 32 * job.launch().num_warps
    # A thread is given registers by eight. A multiprocessor has 65536, and a KiB more of shared
    # memory than one program may have, of which it keeps one for each.
    assert programs * threads * 8 * math.ceil(code.registers / 8) <= 65536
    assert programs * (code.shared + 1024) <= CARDS[job.card].shared_bytes + 1024


@on_every_card
def test_enqueue_alone(name, report):
    for launch in lone_enqueue(64, 16384, 128, momentum=0.5, newest_first=True):
        code = compile_for(launch, CARDS[name])
        report(code, f"{launch.kernel.name} {name}")
        assert code.spilled == 0


@pytest.mark.parametrize("dim", [128, MAX_DIM])
@on_every_card
def test_merge_of_partial_sums(name, dim, report):
    for precision, need_grad in (("bfloat16", True), ("tf32", True), ("float32", False)):
        launch = merge_alone(CARDS[name], dim, settings(precision, need_grad=need_grad))
        code = compile_for(launch, CARDS[name])
        alone = "" if need_grad else ", loss alone"
        report(code, f"merge {name} {precision} D={dim}{alone}")
        assert code.spilled == 0


@pytest.mark.parametrize(
    ("name", "need_grad", "form", "rows"),
    [
        ("H200", True, {}, 1),
        ("H200", False, {}, 0),
        ("H200", False, HARD, 2),
        pytest.param("B200", True, WHOLE, 2, marks=pytest.mark.long),
        pytest.param("B200", False, {}, 0, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_dependent_kernel_waits_before_it_reads(name, need_grad, form, rows):
    """What its predecessor writes: the last kernel's own rows of z_s and z_t are loaded before."""
    card = CARDS[name]
    wanted = settings("bfloat16", need_grad=need_grad, enqueue="before", **form)
    hardware = Hardware(card.family, card.multiprocessors)
    plan = make_plan(*SMALL, 128, "bfloat16", 2, need_grad, hardware, roles=wanted.roles)._replace(
        dependent=True
    )
    launches = step(card, *SMALL, 128, wanted, torch.bfloat16, plan)
    assert [launch.dependent for launch in launches] == [False, True, True]
    # griddepcontrol.wait and .launch_dependents, and what reaches global memory.
    wait, start, load, store = "ACQBULK", "PREEXIT", "LDG", "STG"
    first, middle, last = (
        [kind for op in opcodes(launch, card) for kind in (wait, start, load, store) if kind in op]
        for launch in launches
    )
    assert wait not in first
    assert first[:2] == [start, load]
    assert middle[:3] == [wait, start, load]
    assert last[: last.index(wait)] == [load] * rows
    assert start not in last


def test_sizes_make_no_new_code():
    """Neither the batch nor the memory's size is compiled in, but for tiles that are all full."""
    wanted = settings("bfloat16", enqueue="before")
    sizes = ((64, 16384), (63, 16384), (1, 16384), (64, 20480))
    sources = [
        [
            specialize(Job("H200", *size, 128, wanted, torch.bfloat16, which, "").launch())
            for which in (PREPARE, ATTEND, COMBINE)
        ]
        for size in sizes
    ]
    assert sources[1:] == sources[:1] * 3
