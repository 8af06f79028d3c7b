"""Which kernels a GPU would launch, noted where operators are called without one."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import emulated
import stand_in_gpu
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rrd_kernels.triton.cards import Hardware
from rrd_kernels.triton.fifo import operators
from rrd_kernels.triton.momentum import operators as momentum_operators
from rrd_kernels.triton.runtime.launch import Launch, Specialization, specialize

H200 = Hardware("sm_90", 132)
META = torch.device("meta")


class Recorder(TorchDispatchMode):
    """Keeps what each operator of this package that is called under it would launch on a GPU."""

    def __init__(self, hardware: Hardware = H200) -> None:
        super().__init__()
        self.hardware = hardware
        self.kernels = emulated.gpu_kernels()
        #: In the order of their first launch.
        self.specializations: dict[Specialization, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kernel = self.kernels.get(func._opname) if func.namespace == "rrd_kernels" else None
        tensors = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        # Those that torch.compile traces with have no addresses.
        real = all(type(tensor) in (Tensor, Parameter) for tensor in tensors)
        refused = self._note(kernel, args) if kernel and real else None
        returned = func(*args, **kwargs or {})
        if refused:
            raise AssertionError(f"{func} takes here what it refuses on a GPU") from refused
        return returned

    def _note(self, kernel: Callable[..., Any], args: Sequence[Any]) -> ValueError | None:
        """The error that a GPU's operator raises."""
        instead = {"run": self.note, "hardware_of": lambda device: self.hardware}
        with (
            torch._C.DisableTorchFunction(),
            mock.patch.multiple(operators, **instead),
            mock.patch.multiple(momentum_operators, **instead),
        ):
            try:
                kernel(*args)
            except ValueError as error:
                return error
        return None

    def note(self, launches: Iterable[Launch]) -> None:
        self.specializations |= dict.fromkeys(map(specialize, launches))


def of_call(
    call: Callable[[], object], hardware: Hardware, real: torch.device = META
) -> dict[Specialization, None]:
    """What ``call`` launches; by default on tensors that have shapes alone. Of these none has an
    address: a view that begins where no vector does must be real."""
    with stand_in_gpu.in_place(real), Recorder(hardware) as recorder:
        call()
    return recorder.specializations


@contextlib.contextmanager
def into(path: Path) -> Iterator[None]:
    """Writes what is launched meanwhile, on the stand-in, the sweep's own launches too."""
    recorder = Recorder()

    def run(launches: Sequence[Launch]) -> None:
        with torch._C.DisableTorchFunction():
            recorder.note(launches)
        stand_in_gpu.run(launches)

    try:
        with mock.patch("rrd_kernels.triton.runtime.run.run", run), recorder:
            yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(list(recorder.specializations)))


def read(folder: Path) -> dict[Specialization, None]:
    """What the processes have written there."""
    found: dict[Specialization, None] = {}
    for path in sorted(folder.glob("*.json")):
        found |= dict.fromkeys(map(Specialization.from_json, json.loads(path.read_text())))
    return found
