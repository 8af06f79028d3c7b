"""Builds the C++ extension against the PyTorch that is installed; pyproject.toml holds the rest."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import setuptools

ROOT = Path(__file__).parent
#: As in pyproject.toml. Checked here too: pip replaces an older PyTorch without asking, and an
#: older setuptools ends in a traceback about the license.
OLDEST_SETUPTOOLS, OLDEST_TORCH = "77", "2.11"
#: A build in place replaces no PyTorch and needs no license; a machine with a GPU may have no newer
#: versions, and no network.
IN_PLACE = "--inplace" in sys.argv
#: Nobody has built the C++ elsewhere: there the package computes in plain PyTorch.
COMPILES = sys.platform == "linux"

HIDDEN = (
    "pip hides the environment's packages from a build unless --no-build-isolation is given.\n"
    "rrd_kernels must be compiled against the PyTorch that will load it."
)


def is_older(version: str, oldest: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)[:2]]

    return numbers(version) < numbers(oldest)


def stop(problem: str, solution: str, *packages: str) -> NoReturn:
    """Ends the build. The commands name PyTorch only if it is to be installed or upgraded."""
    names = " ".join((*packages, f"'setuptools>={OLDEST_SETUPTOOLS}'", "ninja"))
    commands = f"    pip install {names}\n    pip install --no-build-isolation ."
    sys.exit(f"{problem}\n{solution}:\n{commands}")


def torch_outside() -> str:
    """The version of the PyTorch that this environment has outside an isolated build; "" if none.

    pip isolates a build through the variable PYTHONPATH, which -E ignores. Other tools start a
    Python of their own: there the answer is always ""."""
    code = "from importlib.metadata import version; print(version('torch'))"
    done = subprocess.run(
        [sys.executable, "-E", "-P", "-c", code], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def check_setuptools() -> None:
    version = setuptools.__version__
    if is_older(version, OLDEST_SETUPTOOLS) and not IN_PLACE:
        stop(
            f"setuptools {version} is installed, and rrd_kernels needs {OLDEST_SETUPTOOLS} or "
            "newer:\nan older one cannot read the license in pyproject.toml.",
            "Upgrade setuptools, then build again",
        )


def check_torch() -> None:
    try:
        import torch

        version = torch.__version__
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        version = torch_outside()
        if COMPILES and not version:
            stop(
                f"This build sees no PyTorch. Either none is installed, or pip hides it:\n{HIDDEN}",
                "Install PyTorch if there is none, then build without isolation",
                *("torch", "numpy"),
            )
        if COMPILES and not is_older(version, OLDEST_TORCH):
            stop(
                f"PyTorch {version} is installed, but this build does not see it:\n{HIDDEN}",
                "Build without isolation",
            )
    if version and is_older(version, OLDEST_TORCH) and not IN_PLACE:
        stop(
            f"PyTorch {version} is installed, and rrd_kernels needs {OLDEST_TORCH} or newer.\n"
            "pip would replace it without asking, so the build stops here.",
            f"To upgrade PyTorch on purpose, and whatever was built for {version}, such as "
            "torchvision",
            *(f"'torch>={OLDEST_TORCH}'", "numpy"),
        )


def extension() -> dict[str, Any]:
    """What setuptools needs to know of the C++ extension."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    compile_args = [
        "-std=c++20",
        "-O3",
        "-g0",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",  # the dispatcher fixes the signatures
        "-Wno-psabi",  # vectors are passed only between inlined functions
        "-Wno-maybe-uninitialized",  # GCC 12's own AVX-512 headers, as is the next
        "-Wno-uninitialized",
    ]
    link_args = []
    if "backend: OpenMP" in torch.__config__.parallel_info():
        # at::parallel_for is inline and serial without it. The runtime itself is PyTorch's, found
        # through libtorch: linking another one would put two thread pools on the same cores.
        compile_args.append("-fopenmp")
    # For tests only: the matrix unit in plain C++, where there is none; AddressSanitizer and UBSan.
    if os.environ.get("RRD_EMULATE_TILES") == "1":
        tiles = str(ROOT / "tests" / "emulated_tiles.h")
        compile_args += ["-DRRD_EMULATE_TILES", "-include", tiles]
    if os.environ.get("RRD_SANITIZE") == "1":
        flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        compile_args += [*flags, "-O1", "-g1", "-fno-omit-frame-pointer"]
        link_args += flags
    module = CppExtension(
        "rrd_kernels._C",
        sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cpp")),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": compile_args},
        extra_link_args=link_args,
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


check_setuptools()
check_torch()
if is_older(setuptools.__version__, OLDEST_SETUPTOOLS):  # in place
    from setuptools.config import pyprojecttoml

    pyprojecttoml.apply_configuration = lambda distribution, *_, **__: distribution
setuptools.setup(**extension() if COMPILES else {})
