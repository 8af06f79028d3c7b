"""Tries the wheel of dist/ in fresh environments, without a compiler: make try-wheel.

Each has what `pip install torch` brings, and the wheel. The example of the README must train with
fused kernels and give the reference's loss: with the oldest PyTorch, one in the middle and the
newest, and after an upgrade of PyTorch in the first of these. An environment is 5 GB, for a while.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from make_wheel import DIST, PLATFORM, ROOT, TORCHES, WORK, minor

#: After the code of the README, whose names it reads.
CHECK = """
from rrd_kernels import extension

assert extension.why_not_fused(torch.device("cpu")) is None, extension.EXTENSION_ERROR
fused, eager = (RRDLoss(s_dim=64, t_dim=256, backend=name) for name in ("fused", "reference"))
eager.load_state_dict(fused.state_dict())
for _ in range(3):
    features = torch.randn(64, 64), torch.randn(64, 256)
    torch.testing.assert_close(fused(*features), eager(*features))
print(torch.__version__, extension.LIBRARY.name, *torch.ops.rrd_kernels.cpu_kernels())
"""


def example() -> str:
    """The blocks of Python code of the README."""
    return "".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))


class Environment:
    """A new virtual environment, whose programs are all that is on the path."""

    def __init__(self, name: str) -> None:
        self.folder = WORK / f"environment-{name}"
        subprocess.run([sys.executable, "-m", "venv", "--clear", self.folder], check=True)

    def run(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [self.folder / "bin" / "python", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.folder / "bin"), "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or "Warning: rrd_kernels" in done.stderr:
            sys.exit(f"failed in {self.folder}: {arguments}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def install(self, *names: str | Path) -> None:
        self.run("-m", "pip", "--disable-pip-version-check", "install", "--quiet", *names)

    def try_it(self, version: str) -> None:
        for tool in ("gcc", "g++", "cc", "c++", "clang", "nvcc"):
            assert shutil.which(tool, path=str(self.folder / "bin")) is None
        found, library, *kernels = self.run("-c", example() + CHECK).split()
        assert minor(found) == minor(version), found
        assert library == "_C_torch_{}_{}.abi3.so".format(*minor(version)), library
        print(f"PyTorch {found}: {library}, {' '.join(kernels)}: trains, fused", flush=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def main() -> None:
    (wheel,) = DIST.glob(f"*{PLATFORM}.whl")
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
