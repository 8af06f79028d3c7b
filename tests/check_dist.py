"""Builds the sdist and the wheel and tries both in an empty environment: make dist.

dist/ holds the results. The wheel's dependencies are several GB: the environment that runs this
lends them, in which pip has found them by the same metadata.
"""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
EMPTY = ROOT / "build" / "empty-environment"

SMOKE = """
import torch
from rrd_kernels import RRDLoss, extension
assert extension.EXTENSION_ERROR is None, extension.EXTENSION_ERROR
fused = RRDLoss(s_dim=8, t_dim=8, backend='fused')
eager = RRDLoss(s_dim=8, t_dim=8, backend='reference')
eager.load_state_dict(fused.state_dict())
f_s, f_t = torch.randn(2, 32, 8)
torch.testing.assert_close(fused(f_s, f_t), eager(f_s, f_t))
print('the wheel works:', torch.ops.rrd_kernels.cpu_kernels())
"""


def run(*command: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        text = f"failed with exit code {done.returncode}: {' '.join(map(str, command))}"
        sys.exit(f"{text}\n{done.stdout}\n{done.stderr}")
    return done


def build() -> tuple[Path, Path]:
    for old in (*DIST.glob("*.tar.gz"), *DIST.glob("*-linux_*.whl")):  # make wheel has its own
        old.unlink()
    # The wheel from the sdist, so that a file the sdist lacks is missed here.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*-linux_*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package = (ROOT / "rrd_kernels").rglob("*.py")
    wanted = ["rrd_kernels/_C.abi3.so", "rrd_kernels/py.typed"]
    wanted += [str(path.relative_to(ROOT)) for path in package]
    missing = [name for name in wanted if name not in names]
    foreign = [name for name in names if not name.startswith("rrd_kernels")]
    if missing or foreign:
        sys.exit(f"{wheel.name} lacks {missing} and has files of other packages: {foreign}")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix}
    if not sources <= inside:
        sys.exit(f"{sdist.name} lacks {sorted(sources - inside)}")


def check_error(python: Path, sdist: Path, problem: str) -> None:
    """An isolated build stops, names the problem, and gives the command without isolation."""
    done = subprocess.run(
        [python, "-m", "pip", "install", "--no-deps", sdist],
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout + done.stderr
    wanted = (problem, "pip install --no-build-isolation .")
    if done.returncode == 0 or "Traceback" in text or any(part not in text for part in wanted):
        sys.exit(f"the build must fail with {problem!r}; exit code {done.returncode}:\n{text}")


def lend_packages(python: Path) -> None:
    """Those of this environment; but not what is installed in place here, such as this package."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = Path(run(python, "-c", code).stdout.strip())
    (theirs / "lent.pth").write_text(sysconfig.get_path("purelib"))


def main() -> None:
    sdist, wheel = build()
    check_contents(sdist, wheel)
    run(sys.executable, "-m", "venv", "--clear", EMPTY)
    python = EMPTY / "bin" / "python"
    check_error(python, sdist, "This build sees no PyTorch")
    print("without PyTorch, the build fails and says what to do")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    run(python, "-m", "pip", "uninstall", "--yes", "setuptools")  # older Pythons bring their own
    lend_packages(python)
    check_error(python, sdist, "is installed, but this build does not see it")
    print("with a PyTorch that pip hides, too")
    run(python, "-m", "pip", "check")
    print(run(python, "-c", SMOKE, folder=EMPTY).stdout.strip())
    shutil.rmtree(EMPTY)


if __name__ == "__main__":
    main()
