"""The documents' examples run, and what they promise exists."""

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from inspect import ismodule
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks

import rrd_kernels
from rrd_kernels import functional, reference, validation
from rrd_kernels.fifo import functional as fifo_functional
from rrd_kernels.fifo import partials
from rrd_kernels.momentum import functional as momentum_functional

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "rrd_kernels").rglob("*.py")
    if ">>> " in path.read_text()
)


def public() -> Iterator[Any]:
    """The classes that the package names, and the functions that its modules name; those of the
    reference have their docstrings in ``functional``."""
    for name in set(rrd_kernels.__all__) - {"reference"}:
        found = getattr(rrd_kernels, name)
        named = [getattr(found, own) for own in found.__all__] if ismodule(found) else [found]
        yield from filter(callable, named)


PUBLIC = dict(sorted((f"{x.__module__}.{x.__qualname__}", x) for x in public()))


def test_what_is_public_is_named():
    for module in (fifo_functional, partials, momentum_functional):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                assert name in functional.__all__
    twins = {name for name in functional.__all__ if hasattr(reference, name)}
    assert twins == set(reference.__all__)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_docstrings_are_whole(name):
    text = inspect.getdoc(PUBLIC[name])
    signature = inspect.signature(PUBLIC[name])
    for part in ("Args:", "Source:", "Example:"):
        assert part in text
    if not inspect.isclass(PUBLIC[name]):
        nothing = signature.return_annotation is None
        assert ("Returns nothing; writes " if nothing else "Returns:") in text
    for parameter in signature.parameters:
        assert re.search(rf"\b{parameter}\b", text), parameter


def test_twins_take_the_same_arguments():
    """And mean the same: the reference's docstring is that of the function which it names."""
    for name in reference.__all__:
        assert f":func:`rrd_kernels.functional.{name}`" in inspect.getdoc(getattr(reference, name))
        fused = inspect.signature(getattr(functional, name)).parameters
        plain = inspect.signature(getattr(reference, name)).parameters
        assert plain.items() <= fused.items()
        assert set(fused) - set(plain) <= {"unit_memory", "precision", "method", "backend"}


def readme() -> str:
    return (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/training.md"])
def test_code_of_a_document_runs(name):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    scope: dict[str, object] = {"__name__": name}
    for block in blocks:
        exec(compile(block, name, "exec"), scope)


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
