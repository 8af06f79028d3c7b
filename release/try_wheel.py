"""Tries the wheel of dist/ in fresh environments, without a compiler: make try-wheel.

Each has what `pip install torch` brings, and the wheel. The example of the README must train with
fused kernels and give the reference's loss: with the oldest PyTorch, one in the middle and the
newest, and after an upgrade of PyTorch in the first of these. An environment is 5 GB, for a while.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from make_wheel import DIST, PLATFORM, ROOT, TORCHES, WORK, minor

#: After the code of the README, whose names it reads.
CHECK = """
from rrd_kernels import extension

assert not torch.equal(criterion.embed_s.weight, before)  # it has trained
assert extension.why_not_fused(torch.device("cpu")) is None, extension.EXTENSION_ERROR
fused, eager = (RRDLoss(s_dim=64, t_dim=256, backend=name) for name in ("fused", "reference"))
eager.load_state_dict(fused.state_dict())
for _ in range(3):
    features = torch.randn(64, 64), torch.randn(64, 256)
    torch.testing.assert_close(fused(*features), eager(*features))
print(torch.__version__, extension.LIBRARY.name, *torch.ops.rrd_kernels.cpu_kernels())
"""


def example() -> str:
    """The Python code of the README, which keeps the projection as it was made."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    made = re.search(r"^criterion = .*\n", code, re.MULTILINE)
    assert made is not None
    return f"{code[: made.end()]}before = criterion.embed_s.weight.clone()\n{code[made.end() :]}"


class Environment:
    """A new virtual environment."""

    def __init__(self, name: str) -> None:
        self.folder = WORK / f"environment-{name}"
        subprocess.run([sys.executable, "-m", "venv", "--clear", self.folder], check=True)

    def run(self, *arguments: str | Path, bare: bool = True) -> str:
        """``bare``: with its own programs on the path, no others, and no other variables."""
        own = {"PATH": str(self.folder / "bin"), "HOME": str(self.folder)}
        done = subprocess.run(
            [self.folder / "bin" / "python", *arguments],
            cwd=self.folder,
            env=own if bare else os.environ | {"PATH": own["PATH"]},  # pip's settings and cache
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or "Warning: rrd_kernels" in done.stderr:
            sys.exit(f"failed in {self.folder}: {arguments}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def install(self, *names: str | Path) -> None:
        pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        self.run(*pip, *names, bare=False)

    def try_it(self, version: str) -> None:
        for tool in ("gcc", "g++", "cc", "c++", "clang", "nvcc"):
            assert shutil.which(tool, path=str(self.folder / "bin")) is None
        found, library, *kernels = self.run("-c", example() + CHECK).split()
        assert minor(found) == minor(version), found
        assert library == "_C_torch_{}_{}.abi3.so".format(*minor(version)), library
        print(f"PyTorch {found}: {library}, {' '.join(kernels)}: trains, fused", flush=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def find_wheel() -> Path:
    """The wheel of this tree."""
    wheels = list(DIST.glob(f"*{PLATFORM}.whl"))
    if len(wheels) != 1:
        sys.exit(f"{DIST} has {len(wheels)} wheels for {PLATFORM}: run make wheel first")
    with zipfile.ZipFile(wheels[0]) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and archive.read(name) != (ROOT / name).read_bytes():
                sys.exit(f"{name} has changed since the wheel was made: run make wheel")
    return wheels[0]


def main() -> None:
    wheel = find_wheel()
    oldest, middle, newest = TORCHES[0], TORCHES[len(TORCHES) // 2], TORCHES[-1]
    for version in (newest, middle, oldest):
        environment = Environment(version)
        environment.install(f"torch=={version}")
        environment.install(wheel)
        environment.try_it(version)
        if version == oldest:
            environment.install("--upgrade", "torch")
            print("after an upgrade of PyTorch in the same environment:")
            environment.try_it(newest)
            print(environment.run("-m", "rrd_kernels"), end="")
        environment.remove()


if __name__ == "__main__":
    main()
