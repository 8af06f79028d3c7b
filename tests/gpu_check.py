"""What is to be known of a GPU, in two parts of a few minutes: python tests/gpu_check.py --help.

The first: does it build and run at all (smoke), is every kernel right (correctness), the bfloat16
cases of the benchmark. The rest: the official sizes with all peers, the tests, compute-sanitizer's
memcheck, the sweep of variants. Kernels come out of a pack (gpu_pack.py), or a stage before these
compiles them on all cores.

All that is found is in one JSON file, --output. It is written whole after each stage, and every few
seconds as one runs, with what the stage has found so far: a call that is killed leaves all but the
last seconds. A stage may take what time there is, less what those after it need at least.

Needs PyTorch, Triton, pytest and a C++ compiler, and no network. Exit code: 0 when no stage failed
or ran out of time, 1 when one did, 2 where there is no GPU.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import run_files
import stages
import torch
from stages import Result, Stage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package is not installed here

from benchmarks import hardware  # noqa: E402
from benchmarks.paths import RESULTS, unused, write_whole  # noqa: E402

PARTS = ("first", "rest")
#: Of a part, with a pack and without; the end of a last stage comes after.
SECONDS = {True: 140.0, False: 285.0}
#: compute-sanitizer's exit code when it has found something.
FOUND = 9
#: What the stand-in notes, in a folder of scratch.
LAUNCHED = "launched"
#: The card that it stands for.
ARCH = "sm_90"
#: What names a pack to the package.
VARIABLE = "RRD_KERNELS"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What is to be known of a GPU, in two parts, into one JSON file."
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="build, smoke, correctness and bfloat16 cases; or official "
        "sizes, tests, memcheck and sweep (default: one after the other)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where the JSON goes; a file that exists is kept, and a number added to the name "
        "(default: benchmarks/results/<device>-check-<date>.json)",
    )
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="DIR",
        default=os.environ.get(VARIABLE),
        help=f"kernels that gpu_pack.py has compiled (default: {VARIABLE}, or none)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="for all stages together (default: {:.0f} for each part, {:.0f} without a "
        "pack)".format(*SECONDS.values()),
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes and one test: shows that all of it runs"
    )
    parser.add_argument(
        "--stand-in", action="store_true", help="on a stand-in for a GPU, which computes on the CPU"
    )
    chosen = parser.parse_args()
    chosen.parts = [chosen.part] if chosen.part else PARTS
    if chosen.seconds is None:
        chosen.seconds = len(chosen.parts) * SECONDS[bool(chosen.pack)]
    if chosen.pack and not list(chosen.pack.glob("*/manifest.json")):
        parser.error(f"--pack: there are no kernels in {chosen.pack}")
    return chosen


def plan(
    scratch: Path,
    parts: Sequence[str] = PARTS,
    *,
    pack: Path | None = None,
    quick: bool = False,
    stand_in: bool = False,
) -> list[Stage]:
    """The stages in their order; the first is needed by all others."""
    # Of a virtual environment that is not activated: without ninja one file is compiled at a time.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    planned = [Stage("build", build, environment={"PATH": path})]
    if stand_in or not pack:
        planned.append(_kernels(scratch, parts, pack, stand_in))
    python = [sys.executable]
    if stand_in:
        python += ["tests/on_stand_in.py", "--record", str(scratch / LAUNCHED)]
    small = ["--quick"] if quick else []
    if "first" in parts:
        planned += _smoke(python, pack) + _first(python, scratch, small)
    if "rest" in parts:
        planned += _rest(python, scratch, small)
    return planned


def _kernels(scratch: Path, parts: Sequence[str], pack: Path | None, stand_in: bool) -> Stage:
    """Compiles them, or where nothing is to run them counts those that a pack has."""
    folder = pack or scratch / "kernels"
    command = [sys.executable, "tests/gpu_pack.py", "--part", *parts]
    command += ["--list"] if stand_in else []
    command += ["--output", str(folder)] if pack or not stand_in else []

    def read(output: str) -> Result:
        # For the stages after this one; without a manifest the folder would be an error.
        if list(folder.glob("*/manifest.json")):
            os.environ[VARIABLE] = str(folder)
        return {"summary": output.strip().splitlines()[-1] if output.strip() else None}

    return Stage("kernels", command, least=30, read=read)


def _smoke(python: Sequence[str], pack: Path | None) -> list[Stage]:
    """A few steps; and without the pack, should the driver refuse what another compiler made."""
    command = [*python, "tests/sanitizer_case.py"]
    with_it = Stage("smoke", command, least=10)
    if not pack:
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


def _first(python: Sequence[str], scratch: Path, quick: Sequence[str]) -> list[Stage]:
    correctness = scratch / "correctness"
    command = [*python, "tests/gpu_correctness.py", f"--output={correctness}", *quick]
    what = ["--cases", "bfloat16", "--compile", "none", "--no-memory"]
    return [
        Stage(
            "correctness",
            command,
            least=35,
            timed=True,
            read=lambda _: read_correctness(correctness),
        ),
        _benchmark("bfloat16", python, scratch, what, quick),
    ]


def _rest(python: Sequence[str], scratch: Path, quick: Sequence[str]) -> list[Stage]:
    results, sweep = scratch / "tests", scratch / "sweep.json"
    tests = run_files.command(python, results)
    tests += ["--files=test_cuda.py", "-k", "cuda and stream"] if quick else []
    # Not the scaling, for which there is no time; `make bench` has it.
    what = ["--parts", "cases", "host", "--compile", "targets"]
    return [
        _benchmark("official sizes", python, scratch, what, quick),
        Stage("tests", tests, least=15, read=lambda _: read_junit(results)),
        _memcheck(python),
        Stage(
            "sweep",
            [*python, "-m", "benchmarks.sweep", f"--output={sweep}", *quick],
            least=15,
            timed=True,
            read=lambda _: {"sweep": json.loads(sweep.read_text())} if sweep.exists() else {},
        ),
    ]


def _benchmark(
    name: str, python: Sequence[str], scratch: Path, what: Sequence[str], quick: Sequence[str]
) -> Stage:
    record = scratch / f"{name}.json"
    command = [*python, "-m", "benchmarks.report", "--device=cuda", f"--output={record}"]
    return Stage(
        name,
        [*command, "--record-only", *what, *(quick or ["--seconds", "0.3"])],
        least=30,
        read=lambda _: {"record": json.loads(record.read_text())} if record.exists() else {},
    )


def _memcheck(python: Sequence[str]) -> Stage:
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
        [command or name, *options, *python, "tests/sanitizer_case.py"],
        least=15,
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


def in_the_pack(folder: Path, pack: Path | None) -> dict[str, int]:
    """How many of the kernels that were noted in ``folder`` a pack has."""
    import recorded

    from rrd_kernels.triton.pack import Pack, key_of

    keys = {key_of(one, ARCH) for one in recorded.read(folder)}
    known = Pack(pack / ARCH).kernels.keys() if pack else set()
    return {"all": len(keys), "in the pack": len(keys & known), "missing": len(keys - known)}


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
            save({"status": "skipped", "reason": f"it needs the {planned[0].name}"})
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
            print("No GPU: PyTorch sees none here, so nothing is checked.", file=sys.stderr)
            return 2
        device = torch.device("cuda")
        today = datetime.date.today().isoformat()
        path = chosen.output or RESULTS / f"{hardware.slug(device)}-check-{today}.json"
        path = unused(path.resolve())
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        report: dict[str, Any] = {
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions | hardware.gpu_versions(),
            "gpu": hardware.gpu(device),
            "parts": chosen.parts,
            "pack": str(chosen.pack) if chosen.pack else None,
        }
        found = [str(ROOT), os.environ.get("PYTHONPATH", "")]  # the package is not installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, found))
        if chosen.pack:
            os.environ[VARIABLE] = str(chosen.pack.resolve())
        how = {"quick": chosen.quick, "stand_in": chosen.stand_in}
        planned = plan(scratch, chosen.parts, pack=chosen.pack, **how)
        passed = check(planned, report, path, chosen.seconds)
        if chosen.stand_in:
            report["launched"] = in_the_pack(scratch / LAUNCHED, chosen.pack)
            write_whole(path, report)
            print(f"kernels that a GPU would have launched: {report['launched']}")
    print(f"{'passed' if passed else 'FAILED'}; written to {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
