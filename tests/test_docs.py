"""The documents' examples run, and what they promise exists."""

import doctest
import functools
import importlib
import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
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
    *_, folder, package = name.split(".")
    if folder == "integrations" and package in INTEGRATIONS:
        pytest.importorskip(package)
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


FOLDERS = ("", "docs/", "docs/packages/", "examples/*/")
DOCUMENTS = [path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder}*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_readme_fits_two_screens():
    assert len(read("README.md").splitlines()) <= 150


#: Packages without which a script is skipped, by the names that it imports.
INTEGRATIONS = (
    "accelerate",
    "lightly",
    "lightning",
    "modelopt",
    "sklearn",
    "timm",
    "torchdistill",
    "transformers",
)


def scripts() -> dict[str, list[str]]:
    """The blocks of Python code of each document that has some."""
    names = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
    found = {name: re.findall(r"```python\n(.*?)```", read(name), re.DOTALL) for name in names}
    return {name: blocks for name, blocks in found.items() if blocks}


SCRIPTS = scripts()


def run_script(name: str) -> dict[str, Any]:
    """What the blocks of a script define, one after the other."""
    scope: dict[str, Any] = {"__name__": name}
    for block in SCRIPTS[name]:
        exec(compile(block, name, "exec"), scope)
    return scope


def test_all_code_is_found():
    """But diffs, shell commands, citations, configurations and the one for several ranks."""
    fenced = "".join(path.read_text() for path in DOCUMENTS)
    marks = re.findall(r"^```(\w+)", fenced, re.MULTILINE)
    assert marks.count("python") == sum(map(len, SCRIPTS.values())) > 20
    assert set(marks) <= {"python", "py", "sh", "diff", "bibtex", "yaml"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_code_of_a_document_runs(name, tmp_path, monkeypatch):
    for package in INTEGRATIONS:
        if re.search(rf"^\s*(from|import) {package}\b", "".join(SCRIPTS[name]), re.MULTILINE):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # where examples write
    if "torch._dynamo" in sys.modules:  # as in a process of its own, where no other test compiled
        sys.modules["torch._dynamo"].reset()
    run_script(name)


def distributed_example(rank):
    """That of docs/several-gpus.md."""
    (block,) = re.findall(r"```py\n(.*?)```", read("docs/several-gpus.md"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block.replace("torch.distributed.init_process_group()", ""), scope)
    memory = scope["criterion"].module.memory
    return memory.queue_ptr, scope["student"].module.weight, memory.embed_s.weight


def test_the_code_for_several_gpus_runs_on_two_ranks():
    (pointer, *weights), (_, *others) = on_ranks(2, distributed_example)
    assert pointer.item() == 3 * 16
    assert all(map(torch.equal, weights, others))


def flags_by_command() -> dict[tuple[str, ...], set[str]]:
    """Of every Python command in the documents: a script, or "-m" and a module, and its flags."""
    found: dict[tuple[str, ...], set[str]] = {}
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        for line in re.findall(r"\bpython3? (?=-m |[\w/.]+\.py)([^`\n|#:]*)", text):
            words = line.split()
            flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            found.setdefault(tuple(words[: 1 + (words[0] == "-m")]), set()).update(flags - {"-m"})
    return {command: flags for command, flags in found.items() if command not in OTHERS}


#: The reader's script, and commands with documents of their own.
OTHERS = {("train.py",), ("-m", "pytest"), ("-m", "pip"), ("-m", "venv")}
FLAGS = flags_by_command()


def script(name: str) -> Path:
    folders = (ROOT, ROOT / "examples" / "cifar100")
    (path,) = (folder / name for folder in folders if (folder / name).exists())
    return path


def help_of(command, monkeypatch, capsys):
    name = command[-1]
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    if len(command) == 2:
        if name.startswith("benchmarks."):
            pytest.importorskip("pandas")
        run = functools.partial(runpy.run_module, name, alter_sys=True)
    else:
        path = script(name)
        if path.parent.name == "cifar100":
            pytest.importorskip("torchvision")
        monkeypatch.syspath_prepend(path.parent)
        run = functools.partial(runpy.run_path, str(path))
    with pytest.raises(SystemExit) as ended:
        run(run_name="__main__")
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", FLAGS, ids=" ".join)
def test_commands_of_documents_have_their_flags(command, monkeypatch, capsys):
    if not FLAGS[command]:  # not all of these have a --help
        assert find_spec(command[1]) if len(command) == 2 else script(command[0])
        return
    text = help_of(command, monkeypatch, capsys)
    if passed_on := re.search(r"All other options go to\s+(\S+\.py)", text):
        text += help_of(passed_on.groups(), monkeypatch, capsys)
    assert set(re.findall(r"--?[a-z][\w-]*", text)) >= FLAGS[command]


def test_make_targets_of_documents_exist():
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    texts = {path: path.read_text() for path in DOCUMENTS}
    named = {
        path: set(re.findall(r"(?:^|^    |`)make ([a-z][\w-]*)", text, re.MULTILINE))
        for path, text in texts.items()
    }
    assert {path: found - targets for path, found in named.items() if found - targets} == {}
    assert {"demo", "test", "docs", "bench"} <= named[ROOT / "README.md"]


def test_the_picture_is_what_its_script_draws(tmp_path, monkeypatch):
    """Pixel by pixel: other versions of the libraries may compress otherwise."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    draw_step = runpy.run_path(str(ROOT / "docs" / "draw_step.py"))
    monkeypatch.setitem(draw_step["main"].__globals__, "PICTURE", tmp_path / "step.png")
    draw_step["main"]()
    drawn, shown = image.open(tmp_path / "step.png"), image.open(ROOT / "docs/pictures/step.png")
    assert drawn.convert("RGB").tobytes() == shown.convert("RGB").tobytes()


def test_the_page_names_every_precision():
    for name in validation.PRECISIONS:
        assert f'`"{name}"`' in read("docs/numerics.md")


def settings_of_numerics() -> list[list[str]]:
    rows = re.findall(
        r"^\| (default|`.*=torch.*`|`precision.*`) \|(.*)\|$", read("docs/numerics.md"), re.M
    )
    return [[setting.strip("`"), *map(str.strip, cells.split("|"))] for setting, cells in rows]


@pytest.mark.parametrize("row", settings_of_numerics(), ids=lambda row: row[0])
def test_what_settings_store_and_multiply(row):
    setting, weights, memory, plain, autocast = row
    given = eval(f"dict({setting if setting != 'default' else ''})", {"torch": torch})
    criterion = rrd_kernels.RRDLoss(s_dim=4, t_dim=4, feat_dim=8, nce_k=16, **given)
    assert str(criterion.embed_s.weight.dtype) == f"torch.{weights}"
    assert str(criterion.memory.queue.dtype) == f"torch.{memory}"
    features = torch.randn(2, 4, dtype=criterion.embed_s.weight.dtype)
    for enabled, products in ((False, plain), (True, autocast)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            z = criterion.embed_s(features)
        found = validation.settle_precision(
            criterion.memory.precision, z, z, criterion.memory.queue
        )
        wanted = products.removeprefix("(embeddings are ").removesuffix(")")
        assert (found or "float32") == wanted


def test_every_setting_was_read():
    assert len(settings_of_numerics()) == 5


def rows_of_methods(heading: str) -> dict[str, list[str]]:
    """The cells of a table of docs/methods.md, by method."""
    _, table = read("docs/methods.md").split(f"| method | {heading} |")
    lines = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()[2:]]
    return {re.sub(r"\[(.*?)\].*", r"\1", name): cells for name, *cells in lines}


METHODS = rows_of_methods("own pair | target | divergence | τ_s, τ_t | K × D | enqueue | start")
PRESETS = rows_of_methods("preset | source")


class Preset(rrd_kernels.RelationalQueue):
    """A preset returns the arguments of the queue that it would make."""

    def __new__(cls, dim: int, size: int, **settings: Any) -> Any:
        parameters = inspect.signature(rrd_kernels.RelationalQueue).parameters.values()
        return {x.name: x.default for x in parameters} | settings | {"dim": dim, "size": size}


def test_the_tables_of_methods_have_the_same_rows():
    assert METHODS.keys() == PRESETS.keys()
    every = {name for name in dir(Preset) if name.startswith("for_")}
    assert every <= set(re.findall(r"`(for_\w+)\(", "".join(map(str, PRESETS.values()))))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"RRD"}))
def test_a_method_has_what_its_preset_has(method):
    call = re.match(r"`(for_.*?\))`", PRESETS[method][0])[1]
    found = eval(f"Preset.{call}", {"Preset": Preset})
    taus = ", ".join(f"{found[name]:.4f}".rstrip("0").rstrip(".") for name in ("tau_s", "tau_t"))
    in_queue = "in the queue" if found["enqueue"] == "before" else "no"
    size = f"{found['size']:,}".replace(",", " ") if found["size"] > 9999 else found["size"]
    assert METHODS[method] == [
        "a column" if found["own_pair"] else in_queue,
        "soft" if found["tau_t"] else "hard",
        {"cross_entropy": "cross-entropy", "kl": "KL"}[found["divergence"]],
        taus,
        f"{size} × {found['dim']}",
        found["enqueue"],
        f"`{found['start']}`",
    ]


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)
