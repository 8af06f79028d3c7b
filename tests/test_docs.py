"""The documents' examples run, and what they promise exists."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

import rrd_kernels
from rrd_kernels import validation

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["checkpoint", "distributed.ddp", "partials", "functional", "loss", "memory", "reference"]
PUBLIC = [
    rrd_kernels.RRDLoss,
    rrd_kernels.FifoMemory,
    rrd_kernels.functional.relational_loss,
    rrd_kernels.functional.enqueue_,
    rrd_kernels.functional.relational_step_,
    rrd_kernels.reference.relational_loss,
    rrd_kernels.reference.enqueue_,
    rrd_kernels.reference.relational_step_,
    rrd_kernels.functional.relational_partials,
    rrd_kernels.functional.loss_of_partials,
    rrd_kernels.reference.relational_partials,
    rrd_kernels.checkpoint.to_layout,
    rrd_kernels.distributed.ignore_in_ddp,
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"rrd_kernels.{name}")
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__qualname__)
def test_public_docstrings_are_whole(thing):
    text = inspect.getdoc(thing)
    for part in ("Args:", "Source:", "Example:"):
        assert part in text
    for parameter in inspect.signature(thing).parameters:
        assert re.search(rf"\b{parameter}\b", text), parameter


def test_twins_take_the_same_arguments():
    for name in ("relational_loss", "enqueue_", "relational_step_", "relational_partials"):
        fused = inspect.signature(getattr(rrd_kernels.functional, name)).parameters
        plain = inspect.signature(getattr(rrd_kernels.reference, name)).parameters
        assert plain.items() <= fused.items()
        assert set(fused) - set(plain) <= {"unit_memory", "precision", "backend"}


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_readme_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    assert blocks
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


def distributed_example(rank):
    """The README's, with a script's other things."""
    (block,) = re.findall(r"```py\n(.*?)```", readme(), re.DOTALL)
    student, teacher = torch.nn.Linear(5, 64), torch.nn.Linear(5, 256).requires_grad_(False)
    scope = {
        "torch": torch,
        "RRDLoss": rrd_kernels.RRDLoss,
        "rrd_kernels": rrd_kernels,
        "student": student,
        "teacher": teacher,
        "images": torch.randn(8, 5),
    }
    exec(block.replace("torch.distributed.init_process_group()", ""), scope)
    return scope["criterion"].module.memory.queue_ptr, student.weight.grad


def test_readme_code_runs_on_two_ranks():
    (pointer, gradient), (_, other) = on_ranks(2, distributed_example)
    assert pointer.item() == 16
    assert torch.equal(gradient, other)


def test_readme_commands_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"\bmake ([\w-]+)", readme())
    assert set(named) <= set(targets)
    assert {"demo", "test"} <= set(named)


def test_readme_names_every_precision():
    for name in validation.PRECISIONS:
        assert name in readme()


def test_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)
