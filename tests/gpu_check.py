"""Checks a GPU in two parts of a few minutes: python tests/gpu_check.py --help.

Part first: build the extension and run it (smoke), compare every kernel with float64 (correctness),
measure the bfloat16 cases of the benchmark. Part rest: the official sizes with all peers, the
tests, compute-sanitizer's memcheck, the sweep of variants. Kernels come from a pack (gpu_pack.py);
without one, a stage before these compiles them on all cores.

All results go into one JSON file, --output. It is written whole after each stage, and every few
seconds while one runs, with the results so far: a call that is killed loses only its last seconds.
A stage may take the time that is left, less the least that the stages after it need.

Needs PyTorch, Triton, pytest and a C++ compiler; no network. Exit code: 0 if no stage failed or ran
out of time, 1 if one did, 2 if there is no GPU.
"""

import argparse
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import run_files
import stages
import torch
from stages import Result, Stage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package is not installed here

from benchmarks.measuring import hardware  # noqa: E402
from benchmarks.report.record import default_path, new_record, write_whole  # noqa: E402

PARTS = ("first", "rest")
#: Seconds for a part; ending its last stage may take ten more. Part rest has torch.compile.
SECONDS = {"first": 140.0, "rest": 200.0}
#: How many more without a pack, to compile the kernels; and for a part on the stand-in.
KERNELS, ON_STAND_IN = 145.0, 1800.0
#: compute-sanitizer's exit code when it has found something.
FOUND = 9
#: The card that the stand-in is for.
ARCH = "sm_90"
#: What names a pack to the package.
VARIABLE = "RRD_KERNELS"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Checks a GPU in two parts and writes the results into one JSON file. Exit "
        "code: 0 if no stage failed or ran out of time, 1 if one did, 2 if there is no GPU."
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="first: build, smoke, correctness and bfloat16 cases; rest: build, official sizes, "
        "tests, memcheck and sweep (default: both, one after the other)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="JSON file of the results; if it exists, a number is added to the name "
        "(default: benchmarks/results/<device>-check-<date>.json)",
    )
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="DIR",
        default=os.environ.get(VARIABLE),
        help="folder of kernels that gpu_pack.py has compiled (default: that of the environment "
        f"variable {VARIABLE}; without it, the kernels are compiled first)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help=f"seconds for all stages together (default: {SECONDS['first']:.0f} for part first, "
        f"{SECONDS['rest']:.0f} for rest, {KERNELS:.0f} more for each without a pack; with "
        f"--stand-in {ON_STAND_IN:.0f} for each)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes and one test: only checks that every stage runs",
    )
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="run without a GPU, on a stand-in for an H200 that computes on the CPU: tiny sizes, "
        "and all tests unless --quick",
    )
    chosen = parser.parse_args()
    chosen.pack = chosen.pack and Path(chosen.pack).resolve()
    chosen.parts = [chosen.part] if chosen.part else PARTS
    if chosen.seconds is None:
        chosen.seconds = sum(
            ON_STAND_IN if chosen.stand_in else seconds_of(part, chosen.pack)
            for part in chosen.parts
        )
    if chosen.pack and not list(chosen.pack.glob("*/manifest.json")):
        parser.error(
            f"--pack: {chosen.pack} holds no kernels; python tests/gpu_pack.py --output DIR "
            f"compiles them into a folder"
        )
    return chosen


def seconds_of(part: str, pack: Path | None) -> float:
    return SECONDS[part] + (0.0 if pack else KERNELS)


@dataclass(frozen=True)
class How:
    """In which manner the stages are run.

    Args:
        scratch: a folder for what they write as they run.
        pack: a folder of kernels, if there is one.
        quick: one test.
        stand_in: on the stand-in, which is too slow for any but tiny sizes.
    """

    scratch: Path
    pack: Path | None = None
    quick: bool = False
    stand_in: bool = False

    @property
    def python(self) -> list[str]:
        """What runs a Python program."""
        return [sys.executable, *(["tests/on_stand_in.py"] if self.stand_in else [])]

    @property
    def small(self) -> list[str]:
        """The option for tiny sizes."""
        return ["--quick"] if self.quick or self.stand_in else []


def _is_another_card() -> bool:
    """Than those that the sweep's variants are for."""
    if not torch.cuda.is_available():
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability() != (9, 0)


def plan(how: How, parts: Sequence[str] = PARTS) -> list[Stage]:
    """The stages in their order; the first is needed by all others."""
    # Of a virtual environment that is not activated: without ninja one file is compiled at a time.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    planned = [Stage("build", build, environment={"PATH": path})]
    if how.stand_in or not how.pack:
        planned.append(_kernels(how, parts))
    if "first" in parts:
        planned += _smoke(how) + _first(how)
    if "rest" in parts:
        planned += _rest(how)
    return planned


def _kernels(how: How, parts: Sequence[str]) -> Stage:
    """Compiles them, or where nothing is to run them counts those that a pack has."""
    folder = how.pack or how.scratch / "kernels"
    command = [sys.executable, "tests/gpu_pack.py", "--part", *parts]
    command += ["--list"] if how.stand_in else []
    command += ["--output", str(folder)] if how.pack or not how.stand_in else []

    def read(output: str) -> Result:
        # For the stages after this one; without a manifest the folder would be an error.
        if list(folder.glob("*/manifest.json")):
            os.environ[VARIABLE] = str(folder)
        return {"summary": output.strip().splitlines()[-1] if output.strip() else None}

    skip = "packs are for NVIDIA's cards only" if torch.version.hip else None
    return Stage("kernels", command, least=30, read=read, skip=skip)


def _smoke(how: How) -> list[Stage]:
    """A few steps; and without the pack, should the driver refuse what another compiler made."""
    command = [*how.python, "tests/sanitizer_case.py"]
    with_it = Stage("smoke", command, least=10)
    if not how.pack:
        return [with_it]

    def read(output: str) -> Result:
        if output.rstrip().endswith("done"):
            os.environ.pop(VARIABLE, None)  # nor have the stages after this one
        return {}

    without = {VARIABLE: ""}
    return [
        with_it,
        Stage("smoke without the pack", command, environment=without, read=read, instead="smoke"),
    ]


def _first(how: How) -> list[Stage]:
    correctness = how.scratch / "correctness"
    command = [*how.python, "tests/gpu_correctness.py", f"--output={correctness}", *how.small]
    what = ["--cases", "bfloat16", "--compile", "none"]
    return [
        Stage(
            "correctness",
            command,
            least=30,
            timed=True,
            read=lambda _: read_correctness(correctness),
        ),
        _benchmark("bfloat16", how, what, least=40),
    ]


def _rest(how: How) -> list[Stage]:
    # Not the growth, for which there is no time; `make bench` has it.
    what = ["--parts", "cases", "host", "--compile", "targets"]
    return [
        _benchmark("official sizes", how, what, least=70),
        _tests(how),
        _memcheck(how),
        _benchmark(
            "sweep",
            how,
            ["--seconds", "4"],
            least=25,
            program=["tests/gpu_sweep.py"],
            key="sweep",  # not the record that tables are made of
            skip="its plans are for sm_90 only" if _is_another_card() else None,
        ),
    ]


def _benchmark(
    name: str,
    how: How,
    what: Sequence[str],
    least: float,
    program: Sequence[str] = ("-m", "benchmarks.report"),
    key: str = "record",
    skip: str | None = None,
) -> Stage:
    record = how.scratch / f"{name}.json"
    command = [*how.python, *program, "--device=cuda", f"--output={record}"]
    return Stage(
        name,
        [*command, "--record-only", *(how.small or ["--seconds", "0.3"]), *what],
        least=least,
        read=lambda _: {key: json.loads(record.read_text())} if record.exists() else {},
        skip=skip,
    )


def _tests(how: How) -> Stage:
    results, noted = how.scratch / "tests", how.scratch / "kernels of the tests"
    record = ["--record", str(noted)] if how.stand_in else []
    command = run_files.command([*how.python, *record], results)
    command += ["--files=test_cuda.py", "-k", "cuda and stream"] if how.quick else []

    def read(output: str) -> Result:
        return read_junit(results) | (in_the_pack(noted, how.pack) if how.stand_in else {})

    return Stage("tests", command, least=15, read=read)


def _memcheck(how: How) -> Stage:
    name = "compute-sanitizer"
    command = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    options = [
        *("--tool", "memcheck", "--error-exitcode", str(FOUND)),
        # PyTorch asks the driver for functions that it can do without.
        *("--report-api-errors", "no"),
        # Not Triton's compiler.
        *("--target-processes", "application-only"),
    ]
    return Stage(
        "memcheck",
        [command or name, *options, *how.python, "tests/sanitizer_case.py"],
        least=10,
        # One allocation for each tensor: within a larger one, what is out of bounds is not seen.
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        read=read_sanitizer,
        skip=None if command else f"{name} is not installed",
    )


def read_correctness(path: Path) -> Result:
    """The cases that have been repeated so far, and what is wrong with which."""
    from gpu_correctness import read, what_is_wrong

    cases = read(path)
    wrong = {name: found for name, case in cases.items() if (found := what_is_wrong(case))}
    counts = {"right": len(cases) - len(wrong), "wrong": len(wrong)}
    return {"counts": counts, "wrong": wrong, "cases": cases}


def read_junit(folder: Path) -> dict[str, Any]:
    """Counts, failures and reasons of skips, from all that ``pytest --junitxml`` wrote there."""
    cases: list[ElementTree.Element] = []
    failures: dict[str, str] = {}
    skips: Counter[str] = Counter()
    files = sorted(folder.glob("*.xml"))
    if not files:
        return {"reason": "pytest wrote no results"}
    for path in files:
        try:
            found = ElementTree.parse(path).getroot().iter("testcase")
        except ElementTree.ParseError as error:  # its process was ended as it wrote
            failures[path.name] = f"cut short: {error}"
            continue
        # One without a name was interrupted.
        cases += [case for case in found if case.get("name")]
    unread = len(failures)
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        for failure in [*case.findall("failure"), *case.findall("error")]:
            failures.setdefault(name, (failure.get("message") or "")[:500])
        skips.update(skip.get("message") or "" for skip in case.findall("skipped"))
    skipped = sum(skips.values())
    return {
        "counts": {
            "passed": len(cases) - (len(failures) - unread) - skipped,
            "failed": len(failures),
            "skipped": skipped,
        },
        "failures": failures,
        "skips": dict(skips),
    }


def read_sanitizer(output: str) -> dict[str, Any]:
    if "Device not supported" in output:
        return {"status": "skipped", "reason": "compute-sanitizer does not support this device"}
    summaries = re.findall(r"SUMMARY: (.*)", output)
    return {"summary": summaries[-1] if summaries else None}


def in_the_pack(folder: Path, pack: Path | None) -> Result:
    """How many of the kernels that were noted in ``folder`` a pack has."""
    import recorded

    from rrd_kernels.triton.runtime.pack import Pack, key_of

    keys = {key_of(one, ARCH) for one in recorded.read(folder)}
    known = Pack(pack / ARCH).kernels.keys() if pack else set()
    missing = len(keys - known)
    said = f"{len(keys)} kernels: {len(keys) - missing} in the pack, {missing} missing"
    return {"summary": said} | ({"status": "failed"} if pack and missing else {})


def check(planned: list[Stage], report: dict[str, Any], path: Path, seconds: float) -> bool:
    """Runs the stages, writes ``report`` as they run, and returns whether none failed."""
    deadline = time.monotonic() + seconds
    results: dict[str, Result] = {}
    report["stages"] = results
    for number, stage in enumerate(planned, start=1):
        print(f"{stage.name}: ", end="", flush=True)

        def save(result: Result, name: str = stage.name) -> None:
            results[name] = result
            done = (found["status"] for found in results.values())
            report["passed"] = all(status in ("passed", "skipped") for status in done)
            write_whole(path, report)

        first = results.get(planned[0].name, {"status": "passed"})
        if first["status"] != "passed":
            save({"status": "skipped", "reason": f"the {planned[0].name} has not passed"})
        elif stage.instead and results[stage.instead]["status"] == "passed":
            save({"status": "skipped", "reason": f"{stage.instead} has passed"})
        else:
            held = sum(later.least for later in planned[number:] if not later.skip)
            save(stages.run(stage, ROOT, deadline - time.monotonic() - held, save))
        print(_in_words(results[stage.name]), flush=True)
    return report["passed"]


def _in_words(result: Result) -> str:
    words = [result["status"]]
    if "seconds" in result:
        words.append(f"{result['seconds']:.0f} s")
    words += [f"{count} {what}" for what, count in result.get("counts", {}).items()]
    words += [result[key] for key in ("summary", "reason") if result.get(key)]
    return ", ".join(words)


def main() -> int:
    chosen = parse_arguments()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if chosen.stand_in:
            import stand_in_gpu

            stack.enter_context(stand_in_gpu.in_place())
        if not torch.cuda.is_available():
            print(
                "No GPU: PyTorch sees none, so nothing is checked. --stand-in runs without one.",
                file=sys.stderr,
            )
            return 2
        device = torch.device("cuda")
        try:
            path = new_record((chosen.output or default_path(device, "check-")).resolve())
        except ValueError as error:
            sys.exit(str(error))
        report = hardware.environment(device) | {
            "parts": chosen.parts,
            "pack": str(chosen.pack) if chosen.pack else None,
        }
        found = [str(ROOT), os.environ.get("PYTHONPATH", "")]  # the package is not installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, found))
        if chosen.pack:
            os.environ[VARIABLE] = str(chosen.pack)
        how = How(scratch, chosen.pack, chosen.quick, chosen.stand_in)
        passed = check(plan(how, chosen.parts), report, path, chosen.seconds)
    print(f"{'passed' if passed else 'FAILED'}; results written to {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
