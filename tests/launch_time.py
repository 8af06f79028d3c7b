"""``python tests/launch_time.py``: host time of a step's forward operator, without a GPU.

At 64×16384×128, with a driver that only keeps what it is given, so that its own time (2 µs or so
for each launch) is not counted.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import stub_driver


def microseconds(call: Callable[[], object], calls: int) -> float:
    """The median of seven repetitions, after one that is not counted."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times[1:])


def measure() -> None:
    import torch
    from launcher_case import call
    from stub_driver.h200 import HARDWARE

    from rrd_kernels.triton.fifo.launches import FifoSettings, step_launches
    from rrd_kernels.triton.runtime.launch import specialize

    torch.set_num_threads(1)
    z_s, z_t = torch.randn(2, 64, 128)
    memory = torch.nn.functional.normalize(torch.randn(16384, 128), dim=1)
    ptr = torch.tensor([0])
    options = (0.1, 0.02, True, "bfloat16", 1, "before", 0.0, True)
    settings = FifoSettings(0.1, 0.02, True, False, False, "bfloat16", 1, True, "before")

    def from_cpp() -> None:
        call("relational_step_forward_", memory, ptr, z_s, z_t, *options)

    def from_python() -> None:
        _, launches = step_launches(z_s, z_t, memory, ptr, settings, HARDWARE)
        for launch in launches:
            hash(specialize(launch))

    print(f"from C++, three launches                     {microseconds(from_cpp, 2000):6.1f} µs")
    print(f"from Python, to list and find them           {microseconds(from_python, 200):6.1f} µs")


def main() -> None:
    if stub_driver.compiler() is None:
        sys.exit("A C compiler is needed for the stand-in driver.")
    with tempfile.TemporaryDirectory() as folder:
        done = stub_driver.run_with_stub(Path(__file__), Path(folder))
    sys.stderr.write(done.stderr)
    print(done.stdout, end="")
    sys.exit(done.returncode)


if __name__ == "__main__":
    measure() if stub_driver.in_place() else main()
