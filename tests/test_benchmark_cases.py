"""What is compared agrees with the reference, and what does not is refused."""

import functools
from dataclasses import replace

import pytest
import torch

from benchmarks.cases.inputs import draw
from benchmarks.cases.sizes import (
    CONTRASTIVE_CASES,
    CPU_CASES,
    CUDA_CASES,
    FAMILY_CASES,
    QUICK_CONTRASTIVE,
    QUICK_FAMILY,
    Case,
    MomentumCase,
)
from benchmarks.implementations import implementations
from benchmarks.implementations.family import PUBLISHED, Products, SoftLoss
from benchmarks.implementations.fifo import Compiled, Fused, PublishedEager
from benchmarks.implementations.libraries import LibraryStep, LinearCrossEntropy
from benchmarks.implementations.momentum import (
    FusedContrastive,
    FusedMomentum,
    PublishedContrastive,
    PublishedMomentum,
)
from benchmarks.implementations.sdpa import CpuFlash
from benchmarks.measuring.agreement import Agreement
from rrd_kernels import RelationalQueue

CPU = torch.device("cpu")
SMALL = Case(16, 512, "float32")
FORMATS = [replace(SMALL, format=name) for name in ("float32", "tf32", "bfloat16", "float16")]
MOMENTUM = MomentumCase(8, 64, "float32", n_data=500)
MOCO, SEED, RESSL, ISD, LIGHTLY = QUICK_FAMILY
CRD, CRD_BFLOAT16, CRD_LOSS = QUICK_CONTRASTIVE


def judged(case, kinds, device=CPU):
    """Each of ``kinds`` in turn, against one reference of what it computes; the errors by name."""
    state, batches = draw(case, device)
    judge = functools.cache(lambda case: Agreement(case, state, batches[0]))
    steps = (kind(case, state) for kind in kinds)
    return {step.name: judge(step.case).check(step) for step in steps}


AGREEING = [*FORMATS, MOMENTUM, *QUICK_FAMILY, *QUICK_CONTRASTIVE]


@pytest.mark.parametrize("case", AGREEING, ids=lambda case: case.name)
def test_every_implementation_agrees(case, device, monkeypatch):
    # Inductor takes seconds for what is seen here: the writes in a graph, the numbers.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    kinds = implementations(case, device)
    found = judged(case, kinds, device)
    assert next(iter(found)) == PublishedEager.name
    assert list(found)[-1] == Fused.name
    if case == SMALL:
        assert found[Fused.name]["gradient"] < 1e-5


def wrong_loss(step, batch, returned, before):
    return 1.001 * returned[0], returned[1]


def wrong_gradient(step, batch, returned, before):
    return returned[0], 1.001 * returned[1]


def wrong_gradient_of_the_teacher(step, batch, returned, before):
    return returned[0], torch.stack([returned[1][0], 1.001 * returned[1][1]])


def writes_nothing(step, batch, returned, before):
    step.state[0].copy_(before[0])
    return returned


def writes_raw(step, batch, returned, before):
    step.memory[: len(batch[1])] = batch[1]
    return returned


def leaves_the_pointer(step, batch, returned, before):
    step.pointer.zero_()
    return returned


def writes_elsewhere(step, batch, returned, before):
    free = [row for row in range(len(before[0])) if torch.equal(step.state[0][row], before[0][row])]
    step.state[0][free[-1]] += 1e-3
    return returned


def swaps_the_normalizers(step, batch, returned, before):
    step.state[2][2:4] = before[2][2:4].flip(0)
    for memory, value in zip(step.state, before[:2], strict=False):
        memory.copy_(value)
    return type(step).__base__.__call__(step, *batch)


WRONG = [
    *((SMALL, Fused, spoil) for spoil in (wrong_loss, wrong_gradient, writes_nothing)),
    *((SMALL, Fused, spoil) for spoil in (writes_raw, leaves_the_pointer, writes_elsewhere)),
    *((MOMENTUM, FusedMomentum, spoil) for spoil in (wrong_gradient, writes_nothing)),
    (MOMENTUM, FusedMomentum, writes_elsewhere),
    *((MOCO, kind, wrong_gradient) for kind in (PUBLISHED["MoCo"], CpuFlash, Products, SoftLoss)),
    *((ISD, kind, wrong_loss) for kind in (PUBLISHED["ISD"], CpuFlash, Fused)),
    *((LIGHTLY, PUBLISHED["LightlyTrain"], spoil) for spoil in (wrong_loss, writes_nothing)),
    *((LIGHTLY, Fused, spoil) for spoil in (writes_raw, leaves_the_pointer)),
    *((MOMENTUM, PublishedMomentum, spoil) for spoil in (wrong_loss, swaps_the_normalizers)),
    *((CRD, PublishedContrastive, spoil) for spoil in (wrong_loss, swaps_the_normalizers)),
    *((CRD, FusedContrastive, spoil) for spoil in (wrong_loss, wrong_gradient_of_the_teacher)),
    *((case, FusedContrastive, writes_nothing) for case in (CRD, CRD_BFLOAT16)),
    *((CRD_LOSS, FusedContrastive, spoil) for spoil in (wrong_loss, writes_elsewhere)),
]


@pytest.mark.parametrize(
    ("case", "kind", "spoil"), WRONG, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_implementation_is_refused(case, kind, spoil):
    """One that is right but for what ``spoil`` does after each call."""

    def spoilt(self, *batch):
        before = [tensor.clone() for tensor in self.state]
        return spoil(self, batch, kind.__call__(self, *batch), before)

    wrong = type("Wrong", (kind,), {"__call__": spoilt})
    with pytest.raises(ArithmeticError, match=kind.name):
        judged(case, [wrong])


@pytest.mark.parametrize(
    ("case", "change"),
    [
        (MOCO, {"tau_t": 0.02}),
        (SEED, {"own_pair": False}),
        (RESSL, {"enqueue": "before"}),
        (ISD, {"divergence": "cross_entropy"}),
        (LIGHTLY, {"newest_first": False}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.name,
)
def test_a_step_of_another_method_is_refused(case, change):
    state, batches = draw(case, CPU)
    with pytest.raises(ArithmeticError, match=Fused.name):
        Agreement(case, state, batches[0]).check(Fused(replace(case, **change), state))


@pytest.mark.parametrize(
    ("case", "preset"),
    list(zip(FAMILY_CASES, ("moco", "seed", "ressl", "isd", "lightly_train"), strict=True)),
    ids=lambda value: value if isinstance(value, str) else value.method,
)
def test_cases_have_the_settings_of_the_presets(case, preset):
    queue = getattr(RelationalQueue, f"for_{preset}")(device="meta")
    assert queue.queue.shape == (case.rows, case.dim)
    names = ("tau_s", "tau_t", "own_pair", "divergence", "enqueue", "newest_first")
    assert [getattr(queue, name) for name in names] == [getattr(case, name) for name in names]


@pytest.mark.parametrize("case", QUICK_FAMILY, ids=lambda case: case.name)
def test_published_steps_go_on_with_the_same_rows(case):
    """Beyond the end of the memory, in whatever layout a method has."""
    case = replace(case, rows=48)
    state, batches = draw(case, CPU)
    published, fused = (kind(case, state) for kind in (PUBLISHED[case.method], Fused))
    for batch in batches:
        losses = [step(*batch)[0] for step in (published.twin(), published, fused)]
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
        torch.testing.assert_close(losses[1], losses[2])
        for found, expected in zip(published.as_drawn(), fused.state, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not LinearCrossEntropy.takes(SMALL), reason="PyTorch lacks it")
def test_linear_cross_entropy_takes_its_chunked_path():
    state, [batch] = draw(SMALL, CPU, sets=1)
    step = LinearCrossEntropy(SMALL, state)
    with torch.profiler.profile() as profiled:
        step(*batch)
    assert any("batch_chunked" in event.key for event in profiled.key_averages())


class Divergence(LibraryStep):
    """A library's loss as it says what it computes."""

    name = "a library"
    compares_loss = False

    def loss(self, student, teacher):
        logits = student @ self.memory.T, teacher @ self.memory.T
        own, target = (both.log_softmax(dim=1) for both in logits)
        return torch.nn.functional.kl_div(own, target, reduction="batchmean", log_target=True)


def test_a_divergence_has_the_cross_entropy_s_gradient():
    errors = judged(SMALL, [Divergence])[Divergence.name]
    assert errors.keys() == {"gradient", "memory"}


def test_the_first_samples_alone_are_looked_at():
    state, batches = draw(SMALL, CPU)
    judge = Agreement(SMALL, state, batches[0], samples=4)
    assert judge.check(Fused(SMALL, state)).keys() == {"gradient", "memory"}
    assert len(judge.expected["gradient"]) == 4


@pytest.mark.parametrize("cases", [CPU_CASES, CUDA_CASES])
def test_cases_are_told_apart_by_their_names(cases):
    every = (*cases, *FAMILY_CASES, *CONTRASTIVE_CASES)
    assert len({case.name for case in every}) == len(every)
    assert any(case.name == "float32 256×131072 D=512" for case in cases)


def test_what_is_compiled_takes_part_at_every_size_if_wanted():
    for device, cases in (("cpu", CPU_CASES), ("cuda", CUDA_CASES)):
        for case in cases:
            for wanted in (True, False):
                kinds = implementations(case, torch.device(device), wanted)
                assert [kind.name for kind in kinds].count(Compiled.name) == wanted
