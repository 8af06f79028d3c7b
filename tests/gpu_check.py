"""Build, tests, benchmark and compute-sanitizer on a GPU, in eight minutes, into one JSON file.

    python tests/gpu_check.py [--output PATH] [--quick]

Needs PyTorch, Triton, pytest and a C++ compiler, and no network. Exit code: 0 when no stage failed
or ran out of time, 1 when one did, 2 where there is no GPU.
"""

import argparse
import datetime
import importlib.util
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
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import stages
import torch
from stages import Stage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package is not installed here

from benchmarks import hardware  # noqa: E402
from benchmarks.paths import RESULTS, unused  # noqa: E402

#: Of all stages together.
SECONDS = 470.0
#: compute-sanitizer's exit code when it has found something.
FOUND = 9


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Build, tests, benchmark and compute-sanitizer on a GPU, into one JSON file."
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where the JSON goes; a file that exists is kept, and a number added to the name "
        "(default: benchmarks/results/<device>-check-<date>.json)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a benchmark of the small sizes only",
    )
    return parser.parse_args()


def plan(scratch: Path, quick: bool) -> list[Stage]:
    """The stages in their order; the first is needed by all others."""
    python = sys.executable
    results = scratch / "tests"
    # A few examples: each of another shape takes seconds to compile.
    profile = ["--hypothesis-profile=interpreter"] if _installed("hypothesis") else []
    record = scratch / "benchmark.json"
    small = ["--cases", "16384", "--seconds", "0.3"]
    # Of a virtual environment that is not activated: without ninja one file is compiled at a time.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    # Not the scaling, for which there is no time; `make bench` has it.
    # Half the usual time for each case: compiling for all of them takes most of it.
    what = small if quick else ["--parts", "cases", "host", "breakdown", "--seconds", "0.5"]
    return [
        Stage(
            "build",
            [python, "setup.py", "build_ext", "--inplace"],
            150,
            environment={"PATH": path},
        ),
        Stage(
            "tests",
            # Those with a device's name in theirs; `make test` runs the others anywhere.
            [
                *(python, "tests/run_files.py", str(results)),
                *("-k", "(cuda or triton) and not triton_compile and not triton_sampled"),
                *profile,
            ],
            200,
            least=100,
            read=lambda _: read_junit(results),
        ),
        Stage(
            "benchmark",
            [python, "-m", "benchmarks.report", "--device=cuda", f"--output={record}", *what],
            260,
            least=120,
            read=lambda _: {"record": json.loads(record.read_text())} if record.exists() else {},
        ),
        *_sanitizer_stages(),
    ]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _sanitizer_stages() -> list[Stage]:
    """The cases by themselves, which fills Triton's cache, then under each tool."""
    name = "compute-sanitizer"
    command = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    cases = [sys.executable, "tests/sanitizer_case.py"]
    # One allocation for each tensor: within a larger one, what is out of bounds is not seen.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    skip = None if command else f"{name} is not installed"
    planned = [Stage("sanitizer warm-up", cases, 45, least=20, environment=environment, skip=skip)]
    for tool in ("memcheck", "racecheck"):
        options = [
            *("--tool", tool, "--error-exitcode", str(FOUND)),
            # PyTorch asks the driver for functions that it can do without.
            *("--report-api-errors", "no"),
            # Not Triton's compiler.
            *("--target-processes", "application-only"),
        ]
        planned.append(
            Stage(
                tool,
                [command or name, *options, *cases],
                45,
                least=40,
                environment=environment,
                read=read_sanitizer,
                skip=skip,
            )
        )
    return planned


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


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def check(planned: list[Stage], report: dict[str, Any], path: Path) -> bool:
    """Runs the stages, writes ``report`` after each, and returns whether none failed."""
    deadline = time.monotonic() + SECONDS
    results: dict[str, dict[str, Any]] = {}
    report["stages"] = results
    for number, stage in enumerate(planned, start=1):
        print(f"{stage.name}: ", end="", flush=True)
        first = results.get(planned[0].name, {"status": "passed"})
        if first["status"] == "passed":
            held = sum(later.least for later in planned[number:] if not later.skip)
            result = stages.run(stage, ROOT, deadline - time.monotonic() - held)
        else:
            result = {"status": "skipped", "reason": f"it needs the {planned[0].name}"}
        if "record" in result:
            report["benchmark"] = result.pop("record")
        results[stage.name] = result
        report["passed"] = all(done["status"] in ("passed", "skipped") for done in results.values())
        write(path, report)
        print(_in_words(result), flush=True)
    return report["passed"]


def _in_words(result: dict[str, Any]) -> str:
    words = [result["status"]]
    if "seconds" in result:
        words.append(f"{result['seconds']:.0f} s")
    words += [f"{count} {what}" for what, count in result.get("counts", {}).items()]
    words += [result[key] for key in ("summary", "reason") if result.get(key)]
    return ", ".join(words)


def main() -> int:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        print("No GPU: PyTorch sees none here, so there is nothing to check.", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    today = datetime.date.today().isoformat()
    path = arguments.output or RESULTS / f"{hardware.slug(device)}-check-{today}.json"
    path = unused(path.resolve())
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    report: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions | hardware.gpu_versions(),
        "gpu": hardware.gpu(device),
    }
    with tempfile.TemporaryDirectory() as scratch:
        passed = check(plan(Path(scratch), arguments.quick), report, path)
    print(f"{'passed' if passed else 'FAILED'}; written to {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
