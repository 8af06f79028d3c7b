"""Builds the C++ extension against the PyTorch that is installed; pyproject.toml holds the rest."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
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
#: Nobody has built the C++ elsewhere: there the package computes in plain PyTorch, unless RRD_BUILD
#: asks for a try.
COMPILES = sys.platform == "linux" or os.environ.get("RRD_BUILD") == "1"
#: Folders of unpacked PyTorch, each of another version, for which release/make_wheel.py puts an
#: extension into one wheel. Without any, the one extension is for the PyTorch that is imported.
TORCHES = [Path(path) for path in os.environ.get("RRD_TORCHES", "").split(os.pathsep) if path]

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


UNWANTED_WARNINGS = (
    "-Wno-unused-parameter",  # the dispatcher fixes the signatures
    "-Wno-psabi",  # vectors are passed only between inlined functions
    "-Wno-maybe-uninitialized",  # GCC 12's own AVX-512 headers, as is the next
    "-Wno-uninitialized",
)
GCC_ONLY = "#if defined(__clang__) || !defined(__GNUC__)\n#error\n#endif\n"


def accepts(flag: str, source: str = "") -> bool:
    """Whether the compiler takes this flag without a warning, and the source with it."""
    from torch.utils.cpp_extension import get_cxx_compiler

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "source.cpp").write_text(source)
        command = [*shlex.split(get_cxx_compiler()), "-Werror", flag, "-c", "source.cpp"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        except FileNotFoundError:  # the build will say that there is no compiler
            return False
    return done.returncode == 0


def compile_arguments() -> tuple[list[str], list[str]]:
    """The flags of the compiler, and of the linker."""
    import torch

    if sys.platform == "win32":
        # Untried. Visual C++ lacks the kernels' vector types; clang-cl has them (CXX=clang-cl).
        compile_args = ["/std:c++20", "/O2"]
    else:
        compile_args = ["-std=c++20", "-O3", "-g0", "-Wall", "-Wextra"]
        compile_args += filter(accepts, UNWANTED_WARNINGS)
        if "backend: OpenMP" in torch.__config__.parallel_info() and accepts("-fopenmp", GCC_ONLY):
            # at::parallel_for is inline and serial without it. The runtime is PyTorch's, found
            # through libtorch: linking another one would put two thread pools on the same cores.
            # Other compilers call other runtimes; for them see csrc/cpu/parallel.h.
            compile_args.append("-fopenmp")
    link_args = []
    # For tests only: the matrix unit in plain C++, where there is none; AddressSanitizer and UBSan.
    if os.environ.get("RRD_EMULATE_TILES") == "1":
        tiles = str(ROOT / "tests" / "emulated_tiles.h")
        compile_args += ["-DRRD_EMULATE_TILES", "-include", tiles]
    if os.environ.get("RRD_SANITIZE") == "1":
        flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        compile_args += [*flags, "-O1", "-g1", "-fno-omit-frame-pointer"]
        link_args += flags
    if TORCHES:
        compile_args += ["-include", str(ROOT / "release" / "glibc_2_28.h")]
        link_args.append("-s")
    return compile_args, link_args


def extensions() -> dict[str, Any]:
    """What setuptools needs to know of the C++ extension: one, or one for each of TORCHES."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class Build(BuildExtension):
        def build_extension(self, ext: setuptools.Extension) -> None:
            folder = self.build_temp
            self.build_temp = os.path.join(folder, ext.name)  # a second build compiles what changed
            super().build_extension(ext)
            self.build_temp = folder

    compile_args, link_args = compile_arguments()

    def extension(name: str) -> setuptools.Extension:
        return CppExtension(
            f"rrd_kernels.{name}",
            sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cpp")),
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args={"cxx": compile_args},
            extra_link_args=link_args,
            py_limited_api=True,
        )

    modules = [] if TORCHES else [extension("_C")]
    for folder in TORCHES:
        version = runpy.run_path(str(folder / "version.py"))["__version__"]
        major, minor = version.split(".")[:2]
        module = extension(f"_C_torch_{major}_{minor}")
        include = folder / "include"
        own = [include, include / "torch" / "csrc" / "api" / "include"]
        module.include_dirs = [str(ROOT / "csrc"), *map(str, own)]
        module.library_dirs = [str(folder / "lib")]
        modules.append(module)
    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": Build.with_options(use_ninja=True)},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


check_setuptools()
check_torch()
if is_older(setuptools.__version__, OLDEST_SETUPTOOLS):  # in place
    from setuptools.config import pyprojecttoml

    pyprojecttoml.apply_configuration = lambda distribution, *_, **__: distribution
setuptools.setup(**extensions() if COMPILES else {})
