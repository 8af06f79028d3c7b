"""The compiled GPU kernels in place of the CPU's, executed by tests/ptx.

With RRD_EMULATED=sm_90 (or sm_80) conftest.py registers them, so that tests which compare with the
float64 reference on every device hold them to the same bounds where there is no GPU.
"""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from card import Card
from torch import Tensor

#: The compute capability that is emulated, as "sm_90"; or "".
ARCH = os.environ.get("RRD_EMULATED", "")
EMULATED = ARCH != ""

#: Libraries keep registrations alive.
_libraries: list[torch.library.Library] = []


def gpu_kernels() -> dict[str, Callable[..., Any]]:
    """What csrc/cuda has Triton do, by operator: what C++ settles before is settled here."""
    from rrd_kernels.extension import OPERATORS
    from rrd_kernels.triton.common.operators import settled
    from rrd_kernels.triton.fifo.operators import triton_step

    def loss_forward(
        z_s: Tensor, z_t: Tensor, memory: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        *numbers, precision, reduction, need_grad = options
        last = (settled(precision), reduction, need_grad)
        return triton_step(z_s, z_t, memory, None, *numbers, *last)

    def step_forward(
        memory: Tensor, ptr: Tensor, z_s: Tensor, z_t: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        *numbers, precision, reduction, enqueue, newest_first, momentum, need_grad = options
        inputs = (z.clone() if torch._C._is_alias_of(z, memory) else z for z in (z_s, z_t))
        last = (settled(precision), reduction, need_grad, enqueue, newest_first, momentum)
        return triton_step(*inputs, memory, ptr, *numbers, *last)

    found = {"relational_loss_forward": loss_forward, "relational_step_forward_": step_forward}
    for memory, names in OPERATORS.items():
        operators = importlib.import_module(f"rrd_kernels.triton.{memory}.operators")
        found |= {name: getattr(operators, name) for name in names if "triton" not in name}
    return found


def replace_cpu_kernels() -> Card:
    """The card that executes them."""
    card = Card(arch=ARCH)
    library = torch.library.Library("rrd_kernels", "IMPL")
    for name, function in gpu_kernels().items():
        library.impl(name, functools.partial(card.call, function), "CPU", allow_override=True)
    _libraries.append(library)
    return card


def executed(name: str, *arguments: Any, **emulated: Any) -> list[Tensor]:
    """What an operator returns and then its tensors, executed twice on copies: with asynchronous
    work done at once and blocks in one order, and done late and in another. The bits are equal."""
    found = []
    for late in (False, True):
        card = Card(**emulated, late=late, seed=int(late))
        copies = _copied(arguments)
        returned = card.call(gpu_kernels()[name], *copies)
        assert card.executed
        found.append([*(returned or ()), *(a for a in copies if isinstance(a, Tensor))])
    for early, late in zip(*found, strict=True):
        assert _bits(early).equal(_bits(late)), "asynchronous work, or the order of blocks, shows"
    return found[0]


def _copied(arguments: Sequence[Any]) -> list[Any]:
    """Each storage is copied once, gaps included, so that views of one storage stay so."""
    storages = {
        a.untyped_storage().data_ptr(): a.untyped_storage().clone()
        for a in arguments
        if isinstance(a, Tensor)
    }
    return [
        torch.empty(0, dtype=a.dtype).set_(
            storages[a.untyped_storage().data_ptr()], a.storage_offset(), a.shape, a.stride()
        )
        if isinstance(a, Tensor)
        else a
        for a in arguments
    ]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() else tensor
