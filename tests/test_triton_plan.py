"""How problems are cut up, and what is registered: all that needs no GPU."""

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
hypothesis = pytest.importorskip("hypothesis")
from machine_code import CARDS, step
from problems import draw

from rrd_kernels import extension
from rrd_kernels.bounds import fits_float32
from rrd_kernels.extension import why_not_fused
from rrd_kernels.triton import cards
from rrd_kernels.triton.cards import FAMILIES, MAX_DIM, WIDTHS, Config, Hardware
from rrd_kernels.triton.common.launches import STORAGE
from rrd_kernels.triton.fifo import autotune
from rrd_kernels.triton.fifo.launches import FifoSettings, allocate
from rrd_kernels.triton.fifo.plan import make_plan
from rrd_kernels.triton.momentum.contrastive import ContrastiveSettings
from rrd_kernels.triton.momentum.launches import MomentumInputs, MomentumSettings
from rrd_kernels.triton.runtime.launch import specialize

ROOT = Path(__file__).parents[1]
given, st = hypothesis.given, hypothesis.strategies

HARDWARE = [Hardware(card.family, card.multiprocessors) for card in CARDS.values()]
sizes = {
    "batch": st.integers(1, 20000),
    "size": st.integers(1, 1 << 22),
    "dim": st.integers(1, MAX_DIM),
    "precision": st.sampled_from(list(STORAGE)),
    "memory_bytes": st.sampled_from([2, 4]),
    "need_grad": st.booleans(),
    "roles": st.sampled_from([1, 2]),
    "hardware": st.sampled_from(HARDWARE),
}


@given(**sizes, splits=st.none() | st.integers(1, 1 << 20))
def test_every_row_and_query_is_in_one_program(
    batch, size, dim, precision, memory_bytes, need_grad, roles, hardware, splits
):
    numbers = batch, size, dim, precision, memory_bytes, need_grad, hardware
    plan = make_plan(*numbers, splits=splits, roles=roles)
    assert splits is None or plan.splits <= splits
    config = plan.config
    rows_per_split = plan.tiles_per_split * config.block_n
    assert (plan.splits - 1) * rows_per_split < size <= plan.splits * rows_per_split
    queries = roles * batch if need_grad else batch
    assert (plan.row_blocks - 1) * config.block_m < queries <= plan.row_blocks * config.block_m
    assert plan.even == (size % config.block_n == 0)
    if need_grad:
        assert (plan.dim_blocks - 1) * config.block_d < dim <= plan.dim_blocks * config.block_d
        # A tile is shared by both products only if it holds whole rows.
        assert dim > config.block_k or config.block_k == config.block_d


@given(**sizes, splits=st.none() | st.integers(1, 1 << 20))
def test_extra_memory(
    batch, size, dim, precision, memory_bytes, need_grad, roles, hardware, splits
):
    """At most 16·B·D bytes + 32 MiB, whatever K is, with D as the products' 16 see it."""
    numbers = batch, size, dim, precision, memory_bytes, need_grad, hardware
    plan = make_plan(*numbers, splits=splits, roles=roles)
    form = (0.02 * (roles == 2), True, roles == 1, False)
    settings = FifoSettings(0.1, *form, precision, 1, need_grad)
    buffers = allocate(torch.empty(batch, dim, device="meta"), plan, settings)
    owners = [buffer if buffer._base is None else buffer._base for buffer in buffers]
    allocated = {id(owner): owner.nbytes for owner in owners}
    assert sum(allocated.values()) <= 16 * batch * plan.dim_pad + 32 * 2**20


@pytest.mark.parametrize("need_grad", [True, False])
def test_a_hard_target_has_half_the_queries(need_grad):
    """And as many launches as any other form: nothing is added to them."""
    steps = {}
    for form in ((0.02, True, False, False), (0.0, True, True, False), (0.02, True, True, True)):
        settings = FifoSettings(0.1, *form, "bfloat16", 1, need_grad, "after", True)
        launches = steps[form] = step(CARDS["H200"], 1024, 65536, 128, settings, torch.bfloat16)
        assert [one.kernel.name.split("_")[0] for one in launches] == [
            "prepare",
            "attend",
            "combine",
        ]
        rows = launches[0].arguments["queries"].shape[0]
        assert rows == 1024 * settings.roles
        assert launches[1].grid[0] * launches[1].constants["BLOCK_M"] == (
            rows if need_grad else 1024
        )
    # What a form does not use is no argument of its kernels.
    soft, hard, whole = (
        [{name for name, _ in specialize(one).passed} for one in launches]
        for launches in steps.values()
    )
    assert [more - less for more, less in zip(soft, hard, strict=True)] == [
        {"scale_t"},
        {"bound_t"},
        set(),
    ]
    assert [more - less for more, less in zip(whole, soft, strict=True)] == [
        set(),
        set(),
        {"scale_t"},
    ]


def test_small_problems_fill_the_chip():
    for card in (CARDS["A100"], CARDS["H200"]):
        hardware = Hardware(card.family, card.multiprocessors)
        for batch in (64, 256):
            plan = make_plan(batch, 16384, 128, "bfloat16", 2, True, hardware)
            programs = math.prod(plan.grid)
            assert 0.75 * card.multiprocessors <= programs <= card.multiprocessors


@pytest.mark.parametrize("programs", [1, 2])
def test_programs_of_a_multiprocessor_are_counted(programs):
    config = Config(128, 64, 128, 128, 4, 3, programs)
    hardware = Hardware("sm_90", 132)
    plan = make_plan(256, 16384, 128, "bfloat16", 2, True, hardware, config)
    assert 0.75 * programs * 132 <= math.prod(plan.grid) <= programs * 132


@pytest.mark.parametrize("splits", [26, 32, 37, 43, 52, 64])
def test_as_many_splits_as_are_asked_for(splits):
    hardware = Hardware("sm_90", 132)
    plan = make_plan(64, 16384, 128, "bfloat16", 2, True, hardware, splits=splits)
    assert plan.splits == splits


def test_the_table_is_complete():
    assert {card.family for card in CARDS.values()} == FAMILIES.keys()
    for family in FAMILIES.values():
        for operands in ("half", "tf32", "float32"):
            for table in (family.attention, family.loss_only, family.dense):
                assert tuple(table[operands]) == WIDTHS
            for small, large in family.attention[operands].values():
                for config in (small, large):
                    assert config.block_d >= config.block_k


def test_what_is_compiled_for_1024_alone_is_the_same_for_the_widest_rows():
    """test_triton_compile.py and test_triton_momentum_compile.py leave it out there."""
    for family in (cards.AMPERE, cards.HOPPER):
        for table in (*family.loss_only.values(), *family.dense.values()):
            assert table[1024] == table[MAX_DIM]


def test_bounded_only_where_float32_holds_the_sums():
    assert fits_float32(0.02, 1 << 20)
    assert fits_float32(0.0155, 1 << 18)
    assert not fits_float32(0.0123, 1 << 20)
    for size in (1, 1 << 10, 1 << 20):
        for tau in torch.linspace(0.01, 0.1, 91).tolist():
            if fits_float32(tau, size):
                largest = torch.tensor(math.log2(math.e) / tau * (1 + 2.0**-7))
                assert (size * torch.exp2(largest) * largest).isfinite()


@pytest.mark.parametrize("precision", STORAGE)
def test_float16_weights_are_never_unshifted(precision):
    for need_grad in (True, False):
        settings = FifoSettings(0.1, 0.02, True, False, False, precision, 1, need_grad)
        launch = step(CARDS["H200"], 64, 16384, 128, settings, torch.float32)[1]
        assert launch.constants["BOUNDED"] == (not need_grad or precision != "float16")


@pytest.mark.parametrize(
    "name",
    ["relational_loss_forward", "relational_step_forward_", "enqueue_", "triton_step"],
)
def test_registered_under_the_cuda_key(name):
    """ROCm's devices have the same key."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rrd_kernels::{name}", "CUDA")


def test_settings_are_in_the_order_of_the_schemas():
    """Operators in Python make them of their arguments by position."""

    def arguments(name: str) -> tuple[str, ...]:
        schema = getattr(torch.ops.rrd_kernels, name).default._schema
        return tuple(argument.name for argument in schema.arguments)

    tensors = ("z_s", "z_t", "memory", "ptr")
    for name in ("triton_step", "triton_recipe"):
        assert arguments(name) == (*tensors, *FifoSettings._fields)
    names = (*MomentumInputs._fields, *MomentumSettings._fields)
    assert arguments("sampled_relational_loss_forward") == names
    names = (*MomentumInputs._fields, *ContrastiveSettings._fields)
    assert arguments("sampled_contrastive_loss_forward") == names


def test_a_device_without_kernels_is_named():
    assert why_not_fused(torch.device("cpu")) is None
    assert why_not_fused(torch.device("meta")) is None  # a loss without data needs no kernel
    assert "not on mps" in why_not_fused(torch.device("mps"))


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("precision", STORAGE)
def test_autotuning_takes_what_measures_best(precision, need_grad, monkeypatch):
    problem = draw(64, 128, 4096)
    settings = FifoSettings(
        0.1, 0.02, True, False, False, precision, 1, need_grad, enqueue="before"
    )
    offered = autotune.candidates(precision, 128, 4, need_grad)
    measured = []

    def milliseconds(call):
        call()
        return 1 / len(measured)  # each faster than the one before

    def run(launches):
        assert launches[0].constants["ENQUEUE"] == "never"  # it must not write the memory
        measured.append(launches[1].constants)
        if len(measured) == len(offered) > 1:
            raise autotune.SharedMemoryError

    monkeypatch.setattr(autotune, "run", run)
    monkeypatch.setattr(autotune, "_best", {})
    arguments = (problem.z_s, problem.z_t, problem.memory, settings, HARDWARE[2], milliseconds)
    plan = autotune.best_plan(*arguments)
    best = offered[max(0, len(offered) - 2)]  # the last did not fit
    assert (plan.config.block_m, plan.config.block_n) == (best.block_m, best.block_n)
    assert autotune.best_plan(*arguments) == plan
    assert len(measured) == len(offered)


def test_a_gpu_is_asked_for_once_and_not_by_dynamo(monkeypatch):
    asked = []
    monkeypatch.setattr(cards, "family_of", lambda index: asked.append(index) or "sm_90")
    monkeypatch.setattr(extension, "_has_gpus", lambda: True)
    extension._family_of.cache_clear()
    device = torch.device("cuda:3")

    def negated(x):
        return -x if why_not_fused(device) is None else x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(negated, fullgraph=True, backend="eager")
        assert compiled(torch.ones(())).item() == negated(torch.ones(())).item() == -1
    assert asked == [3]
    monkeypatch.undo()
    extension._family_of.cache_clear()


def family_of(monkeypatch, **properties: object) -> str | None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties)
    )
    return cards.family_of(0)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_recognised(name, monkeypatch):
    card = CARDS[name]
    arch, shared_bytes = card.target.arch, card.shared_bytes
    if card.target.backend == "hip":
        monkeypatch.setattr(torch.version, "hip", "7.0")
        found = family_of(monkeypatch, gcnArchName=f"{arch}:sramecc+:xnack-")
    else:
        major, minor = divmod(arch, 10)
        sizes = {"major": major, "minor": minor, "shared_memory_per_block_optin": shared_bytes}
        found = family_of(monkeypatch, **sizes)
        # A pack is compiled without the card, by the capability alone.
        assert cards.family_of_capability(major, minor) == card.family
    assert found == card.family


def test_the_table_of_docs_names_every_card():
    text = (ROOT / "docs" / "gpus.md").read_text()
    assert [name for name in CARDS if f"| {name} |" not in text] == []


@pytest.mark.parametrize(
    ("capability", "shared_kib", "family"),
    [
        ((7, 5), 64, None),
        ((8, 7), 163, "sm_80"),
        ((8, 9), 99, "sm_86"),
        ((10, 3), 227, "sm_100"),
        ((12, 0), 99, "sm_86"),
    ],
)
def test_cards_that_take_another_s_block_sizes(capability, shared_kib, family, monkeypatch):
    major, minor = capability
    sizes = {"major": major, "minor": minor, "shared_memory_per_block_optin": shared_kib * 1024}
    assert family_of(monkeypatch, **sizes) == family
