"""Compiled kernels with one thing wrong: the emulation notices it, but for what UNNOTICED lists."""

import itertools
import os
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")
from card import program_of
from problems import Problem
from ptx.program import PtxError
from spoilt import KINDS, Spoilt, spoilt
from test_ptx_fifo import Step, check, problem_of


class Kernel(NamedTuple):
    """A kernel to be spoilt, in calls that reach every part of it."""

    name: str
    arch: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.arch} {self.steps[0].precision}"


def attend(precision: str, arch: str) -> Kernel:
    """More than a block of queries, the last of which is hardly filled; the second pass too."""
    step = Step(precision, 128, 33, 333, "after", 0.5, 1, "kept")
    return Kernel("attend", arch, (step, replace(step, promise="broken")))


#: Three splits and more for each that are added at a time.
COMBINE = Kernel("combine", "sm_90", (Step("bfloat16", 500, 3, 650, multiprocessors=11),))
#: The loss alone, with more than one split for each block of samples.
ALONE = Step("float16", 100, 66, 333, need_grad=False, multiprocessors=6)
KERNELS = [
    attend("bfloat16", "sm_90"),
    attend("tf32", "sm_90"),
    attend("bfloat16", "sm_80"),
    attend("float32", "sm_80"),
    COMBINE,
    Kernel("prepare", "sm_80", (Step("bfloat16", 100, 5, 70),)),
    Kernel("attend_loss", "sm_90", (ALONE,)),
]


class Case(NamedTuple):
    step: Step
    problem: Problem
    found: tuple[torch.Tensor, ...]  # by the kernel as it is


def cases_of(kernel: Kernel, count: int | None = None) -> tuple[str, list[Case]]:
    """The kernel's PTX, and ``count`` of its calls. The teacher is as warm as the student: where it
    looks at one row only, nothing else shows."""
    torch.manual_seed(0)
    seen, cases = {}, []
    for step in kernel.steps[:count]:
        problem = replace(problem_of(step), tau_t=0.1)
        keep = lambda name, ptx: seen.setdefault(name, ptx)  # noqa: E731
        cases.append(Case(step, problem, check(step, problem, kernel.arch, changed=keep)))
    return seen[kernel.name], cases


def outcome(kernel: Kernel, change: Spoilt, cases: list[Case]) -> str:
    """What notices a change: a check, a wrong number, other bits; or "nothing"."""

    def changed(name: str, ptx: str) -> str:
        return change.ptx if name == kernel.name else ptx

    try:
        for step, problem, found in cases:
            bits = check(step, problem, kernel.arch, changed=changed)
            if not all(map(torch.equal, found, bits)):
                return "other bits"
    except PtxError as error:
        return "nothing" if "unknown" in str(error) else "a check"
    except AssertionError:
        return "a number"
    finally:
        program_of.cache_clear()
    return "nothing"


NOTICED = ("a check", "a number")
#: What is not noticed everywhere, with Triton 3.9, and why.
_FENCED = "what the second product multiplies, and its registers, were fenced for the first"
_MERGED = "copies go with the group after, which is waited for too"
_ALIKE = "all threads store one value, or the guard holds in all blocks"
_DRAINED = "waits for copies of tiles beyond the last, which nobody reads"
_MASKED = "lanes beyond the batch or the splits, whose values are masked"
UNNOTICED = {
    ("attend", "product fence removed"): _FENCED,
    ("attend", "proxy fence removed"): _FENCED,
    ("attend", "copies not committed"): _MERGED,
    ("attend", "guard removed"): _ALIKE,
    ("attend_loss", "product fence removed"): _FENCED,
    ("attend_loss", "proxy fence removed"): _FENCED,
    ("prepare", "guard removed"): _ALIKE,
    ("combine", "barrier removed"): "the thread that stores the loss is the one that releases it",
    ("combine", "copy wait later"): _DRAINED,
    ("combine", "copies not committed"): _MERGED,
    ("combine", "load from elsewhere"): _MASKED,
    ("combine", "store elsewhere"): "a row's largest element only scales it: other bits, as right",
    ("combine", "guard removed"): _ALIKE,
}
#: Of each kind, that are tried in a kernel.
PLACES = int(os.environ.get("RRD_SPOILT_PLACES", "2"))

FIRST = [
    (kernel, kind)
    for kernel, kinds in [
        (KERNELS[0], [kind for kind in KINDS if kind != "release weakened"]),
        (KERNELS[2], ["barrier removed", "copy wait later", "load from elsewhere"]),
        (COMBINE, ["release weakened"]),
    ]
    for kind in kinds
]


@pytest.mark.parametrize(("kernel", "kind"), FIRST, ids=str)
def test_each_kind_is_noticed(kernel, kind):
    """At one of the first five places: there are barriers and fences that need not be."""
    ptx, cases = cases_of(kernel, 1)
    changes = itertools.islice(spoilt(ptx, kind), 5)
    assert any(outcome(kernel, change, cases) in NOTICED for change in changes)


@pytest.mark.long
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_what_is_not_noticed_is_known(kernel):
    """But for what stands in UNNOTICED. Of each kind some places, far from each other."""
    ptx, cases = cases_of(kernel)
    table = Counter()
    for kind in KINDS:
        changes = list(spoilt(ptx, kind))
        for change in changes[:: max(1, -(-len(changes) // PLACES))]:
            found = outcome(kernel, change, cases)
            table[kind, found] += 1
            if found in ("nothing", "other bits"):
                print(f"{kernel}: {kind}, PTX line {change.line}, {found}: {change.was}")
    for (kind, found), count in table.items():
        print(f"{kernel}: {kind}: {count} noticed by {found}")
    unnoticed = {kind for kind, found in table if found not in NOTICED}
    assert {(kernel.name, kind) for kind in unnoticed} <= UNNOTICED.keys()
    assert sum(n for (_, found), n in table.items() if found in NOTICED) > 0.8 * table.total()
