"""One pytest process for each test file, several at a time.

    python tests/run_files.py RESULTS [-k EXPRESSION] [pytest's options]

Most of the time that the tests take on a GPU is that of Triton's compiler, which is one CPU thread
in each process. RESULTS is a folder, for pytest's XML and its output, a file for each process.

Exit code: 0 when no test failed, 1 when one did, 5 when none was selected, 130 when interrupted.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
    "test_cuda.py": (
        "large_problems and float32",
        "large_problems and tf32",
        "large_problems and bfloat16",
        "large_problems and not (float32 or tf32 or bfloat16)",
        "not large_problems",
    ),
    "test_properties.py": (
        "float32",
        "bfloat16 and not float32",
        "not (float32 or bfloat16)",
    ),
    "test_sampled.py": (
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
        "--workers", type=int, default=WORKERS, help="processes at a time (default: %(default)s)"
    )
    return parser.parse_known_args()


def parts_of(tests: Path) -> list[Part]:
    """All of the folder's files, in the order in which they are started."""
    files = sorted(path.name for path in tests.glob("test_*.py"))
    ordered = [name for name in LONGEST if name in files]
    ordered += [name for name in files if name not in LONGEST]
    return [Part(tests / name, part) for name in ordered for part in LONGEST.get(name, ("",))]


def run_part(part: Part, selection: str, stem: Path, options: Sequence[str]) -> Finished:
    """One process; its XML and its output lie at ``stem`` with another suffix."""
    both = " and ".join(f"({text})" for text in (selection, part.expression) if text)
    command = [sys.executable, "-m", "pytest", "-q", str(part.file), f"--junitxml={stem}.xml"]
    # Not the cache of failed tests either, which all would write.
    command += [*("-p", "no:cacheprovider"), *(("-k", both) if both else ()), *options]
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
    finished: list[Finished] = []
    interrupted = False
    with ThreadPoolExecutor(arguments.workers) as pool:
        futures = [
            pool.submit(run_part, part, arguments.k, arguments.results / f"{number:02}", options)
            for number, part in enumerate(parts_of(arguments.tests))
        ]
        try:
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
