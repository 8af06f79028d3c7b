"""Builds the C++ extension against the PyTorch that is installed; pyproject.toml holds the rest."""

import os
import sys
from pathlib import Path

import setuptools
from setuptools import setup
from setuptools.config import pyprojecttoml

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "rrd_kernels compiles a C++ extension against the PyTorch that will load it, and no "
        "PyTorch was found by this build.\n"
        "Install PyTorch first, then build without isolation:\n"
        "    pip install torch 'setuptools>=77' ninja\n"
        "    pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
if int(setuptools.__version__.partition(".")[0]) < 77 and "--inplace" in sys.argv:
    # It cannot read the license there, of which an extension in place has no need; a machine with a
    # GPU may have no newer one, and no network.
    pyprojecttoml.apply_configuration = lambda distribution, *_, **__: distribution
# For tests only: AddressSanitizer and UBSan; the matrix unit in plain C++, where there is none.
SANITIZE = os.environ.get("RRD_SANITIZE") == "1"
EMULATE_TILES = os.environ.get("RRD_EMULATE_TILES") == "1"

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
if sys.platform == "linux" and "backend: OpenMP" in torch.__config__.parallel_info():
    # at::parallel_for is inline and serial without it. The runtime itself is PyTorch's, found
    # through libtorch: linking another one would put two thread pools on the same cores.
    compile_args.append("-fopenmp")
if EMULATE_TILES:
    compile_args += ["-DRRD_EMULATE_TILES", "-include", str(ROOT / "tests" / "emulated_tiles.h")]
if SANITIZE:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_args += [*flags, "-O1", "-g1", "-fno-omit-frame-pointer"]
    link_args += flags

setup(
    ext_modules=[
        CppExtension(
            "rrd_kernels._C",
            sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cpp")),
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args={"cxx": compile_args},
            extra_link_args=link_args,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
