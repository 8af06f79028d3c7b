"""One pytest process for each test file that has selected tests, several at a time.

    python tests/run_files.py RESULTS [-k EXPRESSION] [pytest's options]

What tests take on a GPU is mostly one CPU thread's work in each process: imports, and where there
is no pack of kernels Triton's compiler. RESULTS is a folder, for pytest's XML and its output, a
file for each process.

Exit code: 0 when no test failed, 1 when one did, 5 when none was selected, 130 when interrupted.
"""

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
#: Each takes a GPU's memory for a context too, some half a gigabyte.
WORKERS = min(16, os.cpu_count() or 1)
#: pytest's exit code when it selects nothing.
NOTHING = 5
INTERRUPTED = 130
#: Of the output of a process that fails, in characters.
TAIL = 2000

#: Those that take longest, which are started first; one that would take longer than all others is
#: cut into parts that need different kernels, by ``-k`` expressions of which each test meets one.
LONGEST = {
    "test_properties.py": (
        "float32",
        "bfloat16 and not float32",
        "not (float32 or bfloat16)",
    ),
    "test_momentum_loss.py": (
        "dense and exponential",
        "dense and not exponential",
        "not dense",
    ),
    "test_compile.py": (
        "functional_step and inductor",
        "opcheck",
        "not (functional_step and inductor) and not opcheck",
    ),
    "test_random_problems.py": ("",),
    "test_cuda.py": ("",),
    "test_step.py": ("",),
    "test_gradients.py": ("",),
}


@dataclass(frozen=True)
class Part:
    """What one process runs: a file, or of it what meets an expression."""

    file: Path
    expression: str

    @property
    def name(self) -> str:
        return self.file.name + (f" -k '{self.expression}'" if self.expression else "")


@dataclass(frozen=True)
class Finished:
    """What came of it."""

    name: str
    exit_code: int
    seconds: float
    output: str

    @property
    def outcome(self) -> str:
        words = {0: "passed", NOTHING: "nothing selected"}
        return words.get(self.exit_code, f"exit code {self.exit_code}")


def command(python: Sequence[str], results: Path) -> list[str]:
    """This program for what runs on a GPU, with the Python that ``python`` starts."""
    profile = ["--hypothesis-profile=gpu"] if importlib.util.find_spec("hypothesis") else []
    program = [*python, str(TESTS / "run_files.py"), str(results), "--python", shlex.join(python)]
    return [*program, "-k", "cuda and not test_triton", *profile]


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description="One pytest process for each test file, several at a time.",
        allow_abbrev=False,  # what is not known is pytest's
    )
    parser.add_argument("results", type=Path, help="a folder, for XML and output")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="as pytest's")
    parser.add_argument(
        "--tests", type=Path, default=TESTS, help="the test files' folder (default: this one)"
    )
    parser.add_argument(
        "--files", default="test_*.py", metavar="PATTERN", help="of them (default: all)"
    )
    parser.add_argument(
        "--python",
        type=shlex.split,
        default=[sys.executable],
        metavar="COMMAND",
        help="what runs a Python module (default: this Python)",
    )
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="processes at a time (default: %(default)s)"
    )
    return parser.parse_known_args()


def longest(files: Sequence[Path]) -> list[Part]:
    """Those of them, in the order in which they are started."""
    there = {path.name: path for path in files}
    return [
        Part(there[name], part)
        for name, parts in LONGEST.items()
        if name in there
        for part in parts
    ]


def selected(
    files: Sequence[Path], arguments: argparse.Namespace, options: Sequence[str]
) -> list[Part]:
    """The others that have selected tests, or cannot be read."""
    files = [path for path in files if path.name not in LONGEST]
    if not files:
        return []
    command = [*arguments.python, "-m", "pytest", "--collect-only", "-q", *map(str, files)]
    command += ["--continue-on-collection-errors", *common_options(arguments.k), *options]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    named = set(re.findall(r"^(?:ERROR )?(?:\S*/)?(test_\w+\.py)\b", done.stdout, re.MULTILINE))
    return [Part(path, "") for path in files if path.name in named]


def common_options(selection: str) -> list[str]:
    # Not the cache of failed tests, which all would write.
    return ["-m", "", "-p", "no:cacheprovider", *(("-k", selection) if selection else ())]


def run_part(
    part: Part, arguments: argparse.Namespace, stem: Path, options: Sequence[str]
) -> Finished:
    """One process; its XML and its output lie at ``stem`` with another suffix."""
    both = " and ".join(f"({text})" for text in (arguments.k, part.expression) if text)
    command = [*arguments.python, "-m", "pytest", "-q", str(part.file), f"--junitxml={stem}.xml"]
    command += [*common_options(both), *options]
    started = time.monotonic()
    log = stem.with_suffix(".log")
    # A file, not a pipe: a grandchild that outlives the process would keep a pipe open.
    with open(log, "w") as output:
        process = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
        )
    seconds = time.monotonic() - started
    return Finished(part.name, process.returncode, seconds, log.read_text(errors="replace"))


def main() -> int:
    arguments, options = parse_arguments()
    arguments.results.mkdir(parents=True, exist_ok=True)
    # Together as many threads as there are cores: one that waits for a core holds up its process.
    threads = max(1, (os.cpu_count() or 1) // arguments.workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Of Inductor's compiler, which takes as many processes as there are cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    finished: list[Finished] = []
    futures: list[Future[Finished]] = []
    interrupted = False
    with ThreadPoolExecutor(arguments.workers) as pool:

        def start(parts: Sequence[Part]) -> None:
            for part in parts:
                stem = arguments.results / f"{len(futures):02}"
                futures.append(pool.submit(run_part, part, arguments, stem, options))

        try:
            files = sorted(arguments.tests.glob(arguments.files))
            start(longest(files))
            start(selected(files, arguments, options))
            for future in as_completed(futures):
                finished.append(future.result())
                if finished[-1].exit_code not in (0, NOTHING):
                    print(f"{finished[-1].name}:\n{finished[-1].output[-TAIL:]}", flush=True)
        except KeyboardInterrupt:  # which the processes have been sent too: they write what is done
            interrupted = True
            pool.shutdown(cancel_futures=True)
            finished = [future.result() for future in futures if not future.cancelled()]
    for result in finished:
        print(f"{result.name}: {result.seconds:.0f} s, {result.outcome}")
    if interrupted:
        print(f"interrupted; {len(futures) - len(finished)} of {len(futures)} were not started")
        return INTERRUPTED
    codes = {result.exit_code for result in finished}
    if codes <= {NOTHING}:
        return NOTHING
    return 0 if codes <= {0, NOTHING} else 1


if __name__ == "__main__":
    sys.exit(main())
