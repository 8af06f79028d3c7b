"""Run by test_import.py in a folder that has packages named triton: imports rrd_kernels, and trains
on the CPU, beside each stand-in for Triton. Prints the names of those that fail."""

import os
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, Mock

import pytest
import torch

#: Folders that have a package named triton, and its parts; "" is itself.
ON_THE_DISK = {"a name": [""], "a language": ["", "language"], "a folder": []}


def write(folder: Path) -> None:
    for name, parts in ON_THE_DISK.items():
        (folder / name / "triton").mkdir(parents=True)
        for part in parts:
            (folder / name / "triton" / part).mkdir(exist_ok=True)
            (folder / name / "triton" / part / "__init__.py").write_text("__version__ = '3.6'")


def put(*names: str, **attributes: object) -> None:
    for name in names:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(attributes)


def delete_the_spec() -> None:
    put("triton")
    del sys.modules["triton"].__spec__


def mock_everything() -> None:
    for part in ("", ".language", ".compiler", ".backends", ".runtime"):
        sys.modules[f"triton{part}"] = MagicMock()


def put_a_package() -> None:
    spec = ModuleSpec("triton", None, is_package=True)
    put("triton", __spec__=spec, __path__=[], __version__="3.6.0")
    put("triton.language", __spec__=ModuleSpec("triton.language", None))


class Finder:
    """Looks in one folder alone for what is named triton; without one it refuses."""

    def __init__(self, folder: str | None) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "triton":
            return None
        if self.folder is None:
            raise ModuleNotFoundError(f"no {name} in this image")
        return PathFinder.find_spec(name, [self.folder])


STAND_INS: dict[str, Callable[[], object]] = {
    "a module without a spec": lambda: put("triton"),
    "no attribute __spec__": delete_the_spec,
    "parts without a spec": lambda: put("triton", "triton.language", "triton.compiler"),
    "None": lambda: sys.modules.update({"triton": None}),
    "a mock": lambda: sys.modules.update({"triton": MagicMock()}),
    "mocks": mock_everything,
    "a mock with a spec": lambda: sys.modules.update({"triton": MagicMock(__spec__=Mock())}),
    "no module": lambda: sys.modules.update({"triton": object()}),
    "a module with a spec": lambda: put("triton", __spec__=ModuleSpec("triton", None), jit=id),
    "a package": put_a_package,
    **{name: lambda name=name: sys.meta_path.insert(0, Finder(name)) for name in ON_THE_DISK},
    "a finder that refuses": lambda: sys.meta_path.insert(0, Finder(None)),
}


def check(installed: bool) -> None:
    """Imports the package, where Triton is installed or not."""
    from rrd_kernels import RRDLoss, extension, pack

    assert extension.EXTENSION_ERROR is None
    assert installed == extension.TRITON_FOUND
    for settings in ({}, {"memory_type": "momentum", "n_data": 20}):
        criterion = RRDLoss(s_dim=6, t_dim=5, feat_dim=8, nce_k=16, backend="fused", **settings)
        f_s = torch.randn(10, 6, requires_grad=True)
        criterion(f_s, torch.randn(10, 5), torch.arange(10)).backward()
        assert f_s.grad.norm() > 0
    # As on a machine with a GPU.
    extension._has_gpus = lambda: True
    extension._has_pack, extension._family_of = lambda index: False, lambda index: "sm_90"
    reason = extension.why_not_fused(torch.device("cuda", 0))
    if installed:
        assert reason is None
        assert "triton" not in sys.modules
        return
    assert "Triton is not installed" in reason

    from rrd_kernels.triton.runtime import run
    from rrd_kernels.triton.runtime.launch import specialize

    arguments = ["--arch", "sm_90", "--output", "out"]
    launch = next(pack.launches(pack.parse_arguments(arguments), "sm_90"))
    for call in (
        lambda: run._compile(specialize(launch), "sm_90"),
        lambda: run._launch_by_triton(launch, 0),
        lambda: pack.main(arguments),
    ):
        with pytest.raises((RuntimeError, SystemExit), match=r"Triton, which .* not installed"):
            call()
    assert not Path("out").exists()


def main() -> None:
    torch.set_num_threads(1)
    for name, make in (STAND_INS | {"installed": lambda: None}).items():
        child = os.fork()
        if not child:
            try:
                make()
                check(name == "installed")
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(name)


if __name__ == "__main__":
    write(Path.cwd())
    main()
