"""Compiles csrc/ with AddressSanitizer and UBSan and runs the tests that reach it: make sanitize.

The matrix unit (AMX) is emulated, so that the sanitizers see what its tiles read and write too, on
any machine with AVX512-BF16. The sanitized package is in build/sanitize.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
TESTS = (
    *("test_properties", "test_enqueue", "test_random_problems"),
    *("test_step", "test_gradients", "test_golden", "test_family", "test_bad_input"),
    *("test_momentum_loss", "test_momentum_update", "test_contrastive_loss", "test_partials"),
)


def compile_extension() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "build.log", "w+") as log:
        done = subprocess.run(
            [
                *(sys.executable, "setup.py", "build_ext"),
                *("--build-lib", BUILD, "--build-temp", BUILD / "temp"),
            ],
            cwd=ROOT,
            env=os.environ | {"RRD_SANITIZE": "1", "RRD_EMULATE_TILES": "1"},
            stdout=log,
            stderr=log,
            check=False,
        )
        log.seek(0)
        if done.returncode != 0:
            sys.exit(f"{log.read()}\nthe sanitized build failed; this log is in {log.name}")
    shutil.copytree(
        ROOT / "rrd_kernels",
        BUILD / "rrd_kernels",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        dirs_exist_ok=True,
    )


def runtime(name: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()


#: The kernels for bfloat16 products on the vector units, which the emulated matrix unit hides.
HIDDEN = ("avx512_bf16", ("test_properties", "test_random_problems"))


def run_tests() -> int:
    environment = os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        # Python and PyTorch keep much until the process ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(BUILD),
    }
    check = (
        "import rrd_kernels, torch; assert rrd_kernels.extension.EXTENSION_ERROR is None; "
        f"assert rrd_kernels.__file__.startswith({str(BUILD)!r}), rrd_kernels.__file__"
    )
    subprocess.run([sys.executable, "-c", check], env=environment, cwd=BUILD, check=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", "-s"]
    pytest += ["--numprocesses", "logical", "--maxprocesses", "8", "--dist", "worksteal"]
    failed = 0
    for capability, names in (("amx", TESTS), HIDDEN):
        tests = [str(ROOT / "tests" / f"{name}.py") for name in names]
        done = subprocess.run(
            [*pytest, "--hypothesis-profile=quick", *tests],
            env=environment | {"RRD_CPU_CAPABILITY": capability},
            cwd=BUILD,
            check=False,
        )
        failed = failed or done.returncode
    return failed


if __name__ == "__main__":
    compile_extension()
    sys.exit(run_tests())
